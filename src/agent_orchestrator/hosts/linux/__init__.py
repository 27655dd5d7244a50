"""Linux: supervisors adopt the processes of agents. Processes of a lost engine are found by their
tag.
"""
