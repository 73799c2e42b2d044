"""Colours and markers that the plots share, told apart by the colour-blind too."""

# Okabe-Ito without yellow, which is hard to see on white, and three more.
COLOURS = (
    '#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00', '#56B4E9', '#5D3A9B', '#8C510A',
    '#1A1A1A',
)  # fmt: skip
GREY = '#777777'  # unpruned, and chance
LIGHT_GREY = '#AAAAAA'  # methods that left the catalog
MARKERS = 'osD^vP*Xh'
