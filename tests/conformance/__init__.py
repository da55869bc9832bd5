"""Answers of providers in the shapes that their vendors document, and what they say."""
