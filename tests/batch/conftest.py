"""The project of tiny notebooks that these tests run."""

from tiny_project import project

__all__ = ["project"]
