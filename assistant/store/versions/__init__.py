"""The forward migrations, one file each: ``v<number>_<name>.py`` with ``upgrade(connection)``."""
