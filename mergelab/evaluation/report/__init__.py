"""The findings for people.

lookup    one finding, the main metric, the variants: what everything below asks a result
verdict   the findings in sentences
tables    the findings as a table, plain and for the page
plots     figures as SVG
pictures  the images of the grid
page      report.html, from all of these and a template
"""
