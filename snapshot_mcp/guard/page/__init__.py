"""The approval page: where a person reads the plan and approves it with the PIN, out of the model's reach.

A small web server on the loopback interface, in a process of its own for each home. The link goes through the model, so a model
that opens it must gain nothing: without the PIN the page only shows and denies. Without the link it does not even do that.

    process.py   the process: started when a link is wanted, gone when nothing waits
    server.py    serving it, there or, where no process can be detached, in the server
    watch.py     what waits, and what was decided elsewhere
    routes.py    requests: Host, Origin, the link's secret, CSRF token, PIN
    html.py      what a person sees, from templates/
    timeline.py  what a roll-back loses, drawn
"""

from snapshot_mcp.guard.page.process import PageProcess as PageProcess
from snapshot_mcp.guard.page.process import run as run
from snapshot_mcp.guard.page.server import approval_page as approval_page
