"""Verifies the AWS signature (version 4) of a request whose head is on stdin, and whose body is not signed.

Arguments: the secret access key. Prints `valid`, or the two signatures. Written from AWS's description alone, so that
it shares nothing with the code under test.
"""

import hashlib
import hmac
import sys
from urllib.parse import parse_qsl, quote, urlsplit

key = sys.argv[1]
lines = sys.stdin.read().replace("\r\n", "\n").strip().split("\n")
method, target, _ = lines[0].split(" ")
headers = {}
for line in lines[1:]:
    name, _, value = line.partition(":")
    headers.setdefault(name.lower(), []).append(" ".join(value.split()))
algorithm, _, rest = headers["authorization"][0].partition(" ")
fields = dict(part.strip().split("=", 1) for part in rest.split(","))
_, date, region, service, end = fields["Credential"].split("/")
assert (algorithm, end) == ("AWS4-HMAC-SHA256", "aws4_request")
url = urlsplit(target)
query = "&".join(
    f"{quote(name, safe='-_.~')}={quote(value, safe='-_.~')}"
    for name, value in sorted(parse_qsl(url.query, keep_blank_values=True))
)
signed = fields["SignedHeaders"].split(";")
canonical = [method, url.path, query]
canonical += [f"{name}:{','.join(headers[name])}" for name in signed]
canonical += ["", ";".join(signed), headers["x-amz-content-sha256"][0]]
digest = hashlib.sha256("\n".join(canonical).encode()).hexdigest()
text = "\n".join([algorithm, headers["x-amz-date"][0], f"{date}/{region}/{service}/{end}", digest])
secret = ("AWS4" + key).encode()
for part in [date, region, service, end]:
    secret = hmac.new(secret, part.encode(), hashlib.sha256).digest()
expected = hmac.new(secret, text.encode(), hashlib.sha256).hexdigest()
print("valid" if expected == fields["Signature"] else f"{fields['Signature']} instead of {expected}")
