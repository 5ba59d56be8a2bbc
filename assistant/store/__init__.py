"""What is kept: incidents with their evidence, answers, feedback, jobs, audit and tokens.

SQLite by default, PostgreSQL by a URL. This package is imported only where something is stored; its modules import
SQLAlchemy, so this file imports none of them.
"""
