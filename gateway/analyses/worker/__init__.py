"""The worker process: takes turns at the stages of analyses, makes deliveries, and watches over its like."""
