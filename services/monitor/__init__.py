"""Watches what models answer.

Owns the prediction events of the routers, their log, labels, and what is computed from them: drift, data quality, quality,
fairness, alerts. Gives verdicts and changes nothing. Never in the path of a prediction.
"""
