"""The ledger and its parts, one a table or a subject: what servers and workers know of each other."""

from gateway.analyses.ledger.ledger import AnalysisQuery, Event, Ledger, Page, Record, Statistics, WorkerStatus

__all__ = ["AnalysisQuery", "Event", "Ledger", "Page", "Record", "Statistics", "WorkerStatus"]
