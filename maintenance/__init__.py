"""Scripts for people who maintain the repository; nothing here is part of the package."""
