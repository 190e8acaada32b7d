"""What status.py knows and shows: read.py (folders and the queue), page.py (words, the table, the HTML page),
draw.py (curves as SVG), drawings.py (those of many experiments, and their cache).
"""
