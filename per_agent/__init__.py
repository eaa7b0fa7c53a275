"""per_agent: a buffered background agent for billable usage events."""
