"""What `python main.py RECIPE` can train: one module a recipe: its flags, defaults, spellings, checks.

Nothing heavy is imported here, so that `--help` stays instant.
"""

from config.recipe import Recipe
from recipes import bytes, cotformer, gpt

RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in (cotformer.RECIPE, bytes.RECIPE, gpt.RECIPE)}
