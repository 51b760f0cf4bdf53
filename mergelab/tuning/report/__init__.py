"""The page of a search.

words     what was searched and what won, in sentences
tables    weights, trials, contrasts, as rows of the page
figures   history and front, as SVG
gallery   the images
page      report.html, from all of these and a template; its style is that of an evaluation's
"""
