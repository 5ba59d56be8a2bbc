"""What can be wrong with the knowledge files, apart from the modules that read them (loading YAML takes time)."""


class KnowledgeError(ValueError):
    """A knowledge file that cannot be used; the text names file, line, key and what to do."""
