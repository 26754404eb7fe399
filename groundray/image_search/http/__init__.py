"""Search over HTTP.

app.py               the FastAPI application: start here
backend.py           what the routes share: the searched service, and the threads that compute and decode
search_routes.py     /search
match_map_routes.py  /match-map
word_routes.py       /words
pool_routes.py       /pool, /labels, /thumbnails/ID, /images/ID
schemas.py           fields of requests and shapes of responses
failures.py          which error becomes which status
request_body.py      receives the body of a request, within limits of size, time and memory
same_origin.py       keeps other web sites out: Host, Origin and security headers
client.py            the address of a client, and whether its connection is encrypted
head.py              answers HEAD
auth_token.py        asks for a token, in a header or a form
rate_limit.py        limits the requests of each client
metrics.py           what Prometheus is shown
renewal.py           takes up a new model, and changed images, while requests are answered
page_files.py        the files of the page, which browsers keep under their version
address.py           the address to listen at
page/                what a browser shows of it
"""
