"""The web pages: rendered here, usable without JavaScript, with nothing from anywhere else."""
