"""The colors of everything that offramp draws: pages, figures, and the pictures in the documentation.

The hues are Okabe and Ito's, which color-blind readers can tell apart (https://jfly.uni-koeln.de/color/).
"""

BLUE = "#0072b2"
VERMILION = "#d55e00"
GREEN = "#009e73"
PURPLE = "#cc79a7"
ORANGE = "#e69f00"
SKY_BLUE = "#56b4e9"

CYCLE = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY_BLUE)
"""Colors of the lines of one chart, in this order."""

INK = "#1c2430"
"""Text and arrows."""
MUTED = "#5b6573"
"""Captions, notes and other text of second rank."""
BORDER = "#dfe3e8"
"""Lines between the rows of a table and around boxes."""
PALE = "#eef2f6"
"""Background of boxes."""
