"""Programs that try to pass without being right, or to get out of the sandbox, by name."""

# Each comes after a right f and before the assertions about it.
FORGERIES = {
    "exit": "import sys; sys.exit(0)",
    "hard exit": "import os; os._exit(0)",
    "exit inside the call": "def f(x):\n    import os\n    os._exit(0)",
    "raise SystemExit in the call": "def f(x):\n    raise SystemExit(0)",
    "always equal": "class E:\n    def __eq__(s, o): return True\n    __ne__ = __lt__ = __eq__\ndef f(x): return E()",
    "always equal number": "class E(int):\n    def __eq__(s, o): return True\ndef f(x): return E()",
    "always equal in a list": "class E:\n    def __eq__(s, o): return True\ndef f(x): return [E()][0]",
    "says it is a number": "class E:\n    __class__ = int\n    def __eq__(s, o): return True\ndef f(x): return E()",
    "marker on output": "print('passed')\nprint('{\"passed\": true}')\nimport os\nos._exit(0)",
    "verdict on every file": """
        import os
        for n in range(1, 1024):
            for text in (b'{"passed": true, "reason": ""}\\n', b'["value", null]\\n' * 50):
                try:
                    os.write(n, text)
                except OSError:
                    pass
        os._exit(0)""",
    "verdict on every file, alive": """
        import os, time
        for n in range(3, 1024):
            try:
                os.write(n, b'["value", [["f", ["kept", 0, null]]]]\\n["value", true]\\n' * 50)
            except OSError:
                pass
        time.sleep(9)""",
    "builtins of the test": """
        import builtins
        builtins.set = builtins.sorted = builtins.bool = lambda *a, **k: 0
        builtins.AssertionError = int
        def f(x): return 0""",
    "the harness's own functions": """
        import sys, json
        for name, module in list(sys.modules.items()):
            for key in ('encode', 'decode', 'verdict', 'problem', 'loads', 'dumps'):
                if hasattr(module, key):
                    setattr(module, key, lambda *a, **k: True)
        def f(x): return True""",
    "the harness's frames": """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for value in list(frame.f_locals.values()):
                    if hasattr(value, 'answer'):
                        value.answer = lambda request: ["value", True]
                frame = frame.f_back
            return True""",
    "a loop that ends early": "def f(x):\n    raise StopIteration",
}

# Each defines f, whose value is True where it got what it wanted.
ESCAPES = {
    "read /etc/passwd": "def f(): return 'root' in open('/etc/passwd').read()",
    "read /etc": "def f():\n    import os\n    return bool(os.listdir('/etc'))",
    "read the home directory": "def f():\n    import os\n    return bool(os.listdir(HOME))",
    "read this file": "def f(): return bool(open(HERE).read())",
    "write outside": "def f(): return bool(open(OUTSIDE, 'w').write('x'))",
    "write into the library": "import os\ndef f(): return bool(open(os.path.dirname(os.__file__) + '/x', 'w'))",
    "write beside python's": "def f():\n    import json, sys\n    return bool(open(sys.path[0] + '/x.py', 'w'))",
    "remove outside": "def f():\n    import os\n    os.unlink(OUTSIDE_THERE)\n    return True",
    "fill the disk": "def f(): return all(open(f'/tmp/{n}', 'w').write('x' * 2**23) for n in range(9))",
    "connect to loopback": "import socket\ndef f(): return bool(socket.create_connection(('127.0.0.1', PORT), 1))",
    "connect by datagrams": """
        def f():
            import socket
            a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            return a.sendto(b'x', SOCKET) == 1""",
    "kill the parent": "def f():\n    import os\n    os.kill(os.getppid(), 9)\n    return True",
    "kill its group": "def f():\n    import os\n    os.kill(0, 9)\n    return True",
    "kill another": "def f():\n    import os\n    os.kill(VICTIM, 9)\n    return True",
    "fork": "def f():\n    import os\n    if os.fork() == 0: os._exit(0)\n    return True",
    "a small fork bomb": """
        def f():
            import os, time
            n = 0
            try:
                for n in range(40):
                    if os.fork() == 0:
                        time.sleep(5)
                        os._exit(0)
            except OSError:
                pass
            return n > 0""",
    "a daemon": """
        def f():
            import os, time
            if os.fork() == 0:
                os.setsid()
                if os.fork() == 0:
                    time.sleep(20)
                os._exit(0)
            return True""",
    "start a program": "import subprocess\ndef f(): return subprocess.call(['/bin/true']) == 0",
    "become a program": "import os\ndef f(): os.execv('/bin/sh', ['sh', '-c', f'echo x > {OUTSIDE}'])",
    "threads without end": """
        def f():
            import threading, time
            for n in range(200):
                threading.Thread(target=time.sleep, args=(5,), daemon=True).start()
            return True""",
    "memory": "def f(): return bool(bytearray(2 * 2**30))",
    "much small memory": "def f():\n    x = [0]\n    while len(x) < 2**28: x += x\n    return True",
    "read the parent's memory": "def f():\n    import os\n    return bool(open(f'/proc/{os.getppid()}/mem', 'rb'))",
    "read processes": "def f():\n    import os\n    return bool(os.listdir('/proc'))",
    "ptrace": """
        def f():
            import ctypes, os
            return any(ctypes.CDLL(None).ptrace(16, n, 0, 0) == 0 for n in (os.getppid(), VICTIM))""",
    "process_vm_readv": """
        def f():
            import ctypes, os
            own, there = ctypes.create_string_buffer(8), ctypes.create_string_buffer(8)
            class Part(ctypes.Structure):
                _fields_ = [('base', ctypes.c_void_p), ('size', ctypes.c_size_t)]
            parts = [Part(ctypes.addressof(b), 8) for b in (own, there)]
            call = ctypes.CDLL(None).process_vm_readv
            return call(os.getppid(), ctypes.byref(parts[0]), 1, ctypes.byref(parts[1]), 1, 0) == 8""",
    "a namespace of its own": "def f():\n    import ctypes\n    return ctypes.CDLL(None).unshare(0x10000000) == 0",
    "the parent's limits": """
        def f():
            import os, resource
            resource.prlimit(os.getppid(), resource.RLIMIT_CPU, (1, 1))
            return True""",
    "environment": "def f():\n    import os\n    return bool(os.environ)",
    "open files": """
        def f():
            import os
            found = 0
            for n in range(3, 1024):
                try:
                    os.fstat(n)
                    found += 1
                except OSError:
                    pass
            return found > 2""",
    "standard input": "def f(): return bool(input())",
}
