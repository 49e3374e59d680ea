"""AC-ODM (arXiv 2505.23878): domain weights as the continuous action of an actor-critic agent.

state.py s^t; reward.py r̂^t; networks.py μ and Q; agent.py the updates; learner.py and policy.py the two mixers.
"""
