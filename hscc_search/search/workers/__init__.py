"""The workers of a study: one, several of a machine, their heartbeats, and the ledger of trials that they share."""
