"""Reads the sources of a vLLM release and says what it has: arguments, variables, metrics, messages.

Nothing of the release is imported or run: its files are parsed (:mod:`ast`), names are followed from module to module
(:mod:`knowledge.sync.tree`), and what builds the argument parser is walked with values that are known from the text
alone (:mod:`knowledge.sync.evaluate`, :mod:`knowledge.sync.arguments`). What cannot be known so is said as such.
"""
