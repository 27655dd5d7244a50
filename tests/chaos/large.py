"""An agent that says as much as may be said, in the shape that its prompt names: ``SHAPE SIZE``.

With the argument ``acp`` it speaks ACP, and all that it says are pieces of the output of one command. It imports
nothing that costs time.
"""

import json
import os
import sys

ONE_LINE = {
    "text": b"x",
    "escapes": b"\\n",
    "escaped": b"\\u4e2d",
    "latin": "é".encode(),
    "cjk": "中".encode(),
    "emoji": "😀".encode(),
    "not-utf-8": b"\xff",
}
"""What one string of one line is made of."""

_BEGIN = b'{"type":"say","text":"'


def pieces(shape, size):
    """Yield some bytes of lines, so many in all."""
    if shape in ONE_LINE:
        unit = ONE_LINE[shape]
        yield _BEGIN
        yield from _repeated(unit, size // len(unit))
        yield b'"}\n'
    elif shape == "one-wide":  # one character that makes all the others take four bytes each
        yield _BEGIN + "😀".encode()
        yield from _repeated(b"x", size)
        yield b'"}\n'
    elif shape == "one-middle":
        yield _BEGIN + "中".encode()
        yield from _repeated(b"x", size)
        yield b'"}\n'
    elif shape == "strings":
        yield b'{"type":"say","text":"x","more":["'
        yield from _repeated(b"x" * 400 + b'","', size // 403)
        yield b'"]}\n'
    elif shape == "values":
        yield b'{"type":"say","text":"x","more":['
        yield from _repeated(b"[],", size // 3)
        yield b"0]}\n"
    elif shape == "deep":
        yield from _repeated(b'{"a":', size // 5)
        yield b"\n"
    elif shape == "twins":
        names = b",".join(b'"%d":0' % number for number in range(20_000))
        yield from _repeated(b"{" + names + b',"19999":0}\n', size // len(names))
    elif shape == "changes":
        yield b'{"type":"changes","changes":[{"path":"a","kind":"add","diff":"'
        yield from _repeated(rb"a\n", size // 3)
        yield b'"}]}\n'
    elif shape == "small-lines":
        yield from _repeated(b'{"type":"say","text":"a"}\n', size // 26)
    elif shape == "blank-lines":
        yield from _repeated(b"\n", size)
    else:  # "lines-of-N"
        length = int(shape.rpartition("-")[2])
        yield from _repeated(_BEGIN + b"x" * (length - 25) + b'"}\n', size // length)


_UPDATE = b'{"jsonrpc":"2.0","method":"session/update","params":{"sessionId":"one","update":%s}}\n'

_PIECE = _UPDATE % (
    b'{"sessionUpdate":"tool_call_update","toolCallId":"call",'
    b'"_meta":{"terminal_output_delta":{"data":"a"}}}'
)


def tool_pieces(size):
    """Yield a call of a tool with pieces of its output, of so many bytes in all."""
    call = b'"toolCallId":"call","kind":"execute","title":"run","rawInput":{"command":"run"}'
    yield _UPDATE % (b'{"sessionUpdate":"tool_call",%s,"status":"in_progress"}' % call)
    yield from _repeated(_PIECE, size // len(_PIECE))
    end = b'{"sessionUpdate":"tool_call_update","toolCallId":"call","status":"completed"}'
    yield _UPDATE % end


def answer(request):
    """Return the result of a request, after what comes before it."""
    match request["method"]:
        case "initialize":
            return {"protocolVersion": 1, "agentCapabilities": {}}
        case "session/new":
            return {"sessionId": "one"}
    size = int(request["params"]["prompt"][0]["text"].split()[1])
    for piece in tool_pieces(size):
        write(piece)
    return {"stopReason": "end_turn"}


def write(piece):
    view = memoryview(piece)
    while view:
        view = view[os.write(1, view) :]


def _repeated(unit, times):
    many = max(1, 65536 // len(unit))
    for _ in range(times // many):
        yield unit * many
    yield unit * (times % many)


if __name__ == "__main__":
    if sys.argv[1:] == ["acp"]:
        for line in sys.stdin:
            asked = json.loads(line)
            told = {"jsonrpc": "2.0", "id": asked["id"], "result": answer(asked)}
            write(json.dumps(told).encode() + b"\n")
    else:
        shape, size = sys.stdin.read().split()
        for piece in pieces(shape, int(size)):
            write(piece)
