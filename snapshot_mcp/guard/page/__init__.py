"""The approval page: where a person reads the plan and approves it with the PIN, out of the model's reach.

A small web server on the loopback interface, on a port of its own, in the process whose call needs the first link. The link
goes through the model, so a model that opens it must gain nothing: without the PIN the page only shows and denies.

    server.py    starting and ending it
    routes.py    requests: Host, Origin, CSRF token, PIN
    html.py      what a person sees, from templates/
"""

from snapshot_mcp.guard.page.server import approval_page as approval_page
