"""Slack: the command, its forms, answers as messages and the tree as a talk in a channel."""
