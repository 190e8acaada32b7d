"""What status.py shows.

read.py        folders and the queue
page.py        words, the table, the HTML page
draw.py        curves as SVG
drawings.py    the curves of many experiments, and their cache
"""
