"""AC-ODM (arXiv 2505.23878): domain weights as the continuous action of an actor-critic agent.

state.py encodes the state s^t, reward.py computes the paper's reward r̂^t and fixed_step.py the default's, and networks.py defines
the actor μ and the critic Q. agent.py has what agents have in common; ddpg.py and mirror.py are the two kinds of agent, and
agents.py makes them. buffers.py holds what an agent remembers. learner.py and policy.py are the two mixers.
"""
