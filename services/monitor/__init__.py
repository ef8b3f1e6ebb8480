"""Watches what models answer.

Owns the prediction events of the routers and what is computed from them; gives verdicts and changes nothing. Never in the
path of a prediction. In this release it takes the events and counts them; the rest of the contract
(interlock.monitor.v1alpha1) answers UNIMPLEMENTED.
"""
