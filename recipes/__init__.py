"""What `python main.py RECIPE` can train: one module a recipe: its flags, defaults, spellings, checks.

Nothing heavy is imported here, so that `--help` stays instant.
"""

from config.recipe import Recipe
from recipes import bytes, coalescence, cotformer, gpt

OF_ALL = (cotformer, bytes, gpt, coalescence)
RECIPES: dict[str, Recipe] = {module.RECIPE.name: module.RECIPE for module in OF_ALL}
