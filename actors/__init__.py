"""The room that keeps the system alive: processes, their supervision, and what they promise each other.

Reading order: `pid` and `exits` (the words), `genserver` (what one writes), `node` (what a process may ask for), `loop`
(what a message does to a server), `inline` and `process` (the two places where processes live), `supervision` and
`supervisor` (who restarts whom).
"""
