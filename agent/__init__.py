"""The agent: one turn from message to reply to memory."""
