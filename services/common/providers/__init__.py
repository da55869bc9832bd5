"""AI providers: what their failures mean, when a call is tried again, and how their answers are read."""
