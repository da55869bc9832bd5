"""What the chat service does: one async function per thing, verb first."""
