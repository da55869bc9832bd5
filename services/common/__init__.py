"""Domain code that several services share. The kit imports none of it."""
