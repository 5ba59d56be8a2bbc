def draw_figures(window, stream):
    pass
