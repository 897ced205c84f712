"""The doorbell: Celery's configuration, and the sending of job ids after commit."""
