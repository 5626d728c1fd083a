"""What the kernel takes away from a process: its names for files, processes and networks, its rights, and system calls.

Linux only, by its own calls: a file system without anything but the standard library (a mount namespace, or Landlock
where namespaces are refused), no other process or network in sight (namespaces), no rights (capabilities), limits, and
a list of the system calls that are allowed at all (seccomp).
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import struct
import sys

_libc = ctypes.CDLL(None, use_errno=True)
_NEWNS, _NEWUTS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_BIND, _REC, _PRIVATE, _NOSUID, _NODEV, _RDONLY, _REMOUNT = 0x1000, 0x4000, 0x40000, 2, 4, 1, 32
_NOBODY = 65534
_SYSTEM_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64")
_DEVICES = ("/dev/null", "/dev/urandom")
_PYTHON_INSIDE = "/python"
LARGEST_FILE = 16 << 20


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _syscall(name: str, *arguments: int | bytes | None) -> int:
    number = _NUMBERS[name]
    if number is None:
        raise OSError(f"{name} is not there")
    packed = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return _check(_libc.syscall(ctypes.c_long(number), *packed), name)


def _prctl(option: int, *arguments: int) -> None:
    _check(_libc.prctl(option, *(ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4])), f"prctl {option}")


def enter_namespaces(user: bool) -> None:
    """Leave the host's processes (from the next child on), network, and System V objects; `user`: needs no rights."""
    uid, gid = os.getuid(), os.getgid()
    flags = _NEWPID | _NEWNET | _NEWIPC | _NEWUTS | (_NEWUSER if user else 0)
    _check(_libc.unshare(flags), "unshare")
    if user:
        for file, text in (
            ("setgroups", "deny"),
            ("uid_map", f"{_NOBODY} {uid} 1"),
            ("gid_map", f"{_NOBODY} {gid} 1"),
        ):
            with open(f"/proc/self/{file}", "w") as handle:
                handle.write(text)


def _mount(source: str, target: str, kind: str, flags: int, data: str = "") -> None:
    strings = (source.encode(), target.encode(), kind.encode(), ctypes.c_ulong(flags), data.encode())
    _check(_libc.mount(*strings), f"mount {target}")


def enter_bare_root() -> None:
    """Make the root directory one that holds the standard library, system libraries and an empty /tmp, and no more."""
    _check(_libc.unshare(_NEWNS), "unshare")
    _mount("none", "/", "", _REC | _PRIVATE)
    # Over /proc, below which no Python is installed, so that every source of a bind stays visible.
    root = "/proc"
    _mount("tmpfs", root, "tmpfs", _NOSUID | _NODEV, "size=1m,nr_inodes=256,mode=755")
    for source, inside in [(path, path) for path in _SYSTEM_LIBRARIES] + [(library(), _PYTHON_INSIDE)]:
        if os.path.islink(source):
            os.symlink(os.readlink(source), root + inside)
        elif os.path.isdir(source):
            os.makedirs(root + inside)
            _mount(source, root + inside, "", _BIND | _REC)
            _set_read_only(root + inside)
    os.mkdir(root + "/dev")
    for device in _DEVICES:
        os.close(os.open(root + device, os.O_CREAT | os.O_WRONLY))
        _mount(device, root + device, "", _BIND)
    os.mkdir(root + "/tmp")
    _mount("tmpfs", root + "/tmp", "tmpfs", _NOSUID | _NODEV, f"size={LARGEST_FILE},nr_inodes=256,mode=1777")
    _mount("none", root, "", _REMOUNT | _BIND | _RDONLY | _NOSUID | _NODEV)
    os.chdir(root)
    _syscall("pivot_root", b".", b".")
    _check(_libc.umount2(b".", 2), "umount")
    os.chdir("/tmp")
    _move_library(_PYTHON_INSIDE)


def library() -> str:
    """Directory of the standard library."""
    return os.path.dirname(os.path.realpath(os.__file__))


def _set_read_only(path: str) -> None:
    # mount_setattr reaches mounts below and keeps flags that a user namespace may not clear.
    attributes = struct.pack("=QQQQ", 0x1 | 0x2, 0, 0, 0)
    _syscall("mount_setattr", -100, path.encode(), 0x8000, attributes, len(attributes))


def _move_library(path: str) -> None:
    before = library()
    sys.path[:] = [path, f"{path}/lib-dynload"]
    sys.path_importer_cache.clear()
    for module in list(sys.modules.values()):
        for index, place in enumerate(getattr(module, "__path__", [])):
            module.__path__[index] = place.replace(before, path, 1)


def enter_bubblewrap(bwrap: str, script: str, arguments: list[str], files: tuple[int, ...]) -> None:
    """Become `bwrap` with Python running `script` in it; `files` stay open.

    For systems on which unprivileged namespaces are granted to `bwrap` alone.
    """
    for file in files:
        os.set_inheritable(file, True)
    inside = f"{_PYTHON_INSIDE}/lib"
    prefix, python = os.path.join(sys.base_prefix, "lib"), f"{_PYTHON_INSIDE}/bin/python"
    command = [bwrap, "--unshare-all", "--die-with-parent", "--new-session"]
    command += ["--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    for path in _SYSTEM_LIBRARIES:
        if os.path.islink(path):
            command += ["--symlink", os.readlink(path), path]
        elif os.path.exists(path):
            command += ["--ro-bind", path, path]
    shared = [(name, f"{inside}/{name}") for name in os.listdir(prefix) if name.startswith("libpython")]
    shared = [(os.path.join(prefix, name), target) for name, target in shared]
    shared += [(library(), f"{inside}/{os.path.basename(library())}"), (os.path.realpath(sys.executable), python)]
    for source, target in (*shared, (os.path.dirname(script), "/launcher/tasks/sandboxed")):
        command += ["--ro-bind", source, target]
    command += ["--dev", "/dev", "--perms", "1777", "--size", str(LARGEST_FILE), "--tmpfs", "/tmp", "--chdir", "/tmp"]
    command += ["--remount-ro", "/", "--setenv", "LD_LIBRARY_PATH", inside]
    command += [python, "-I", "-S", "-B", f"/launcher/tasks/sandboxed/{os.path.basename(script)}", *arguments]
    os.execv(bwrap, command)


def drop_rights(memory: int, user: bool) -> None:
    """Give up all capabilities for good, let nobody look in, end with the parent; `user`: be another than root."""
    for capability in range(64):
        if _libc.prctl(24, ctypes.c_ulong(capability), 0, 0, 0):
            break
    if user and os.geteuid() == 0:
        os.setgroups([])
        # A user of its own, so that the limit on processes counts no one else's; in a small user namespace, nobody.
        for number in (0x70000000 + os.getpid(), _NOBODY):
            try:
                os.setresgid(number, number, number)
                os.setresuid(number, number, number)
                break
            except OSError:
                continue
        if os.geteuid() == 0:
            raise OSError("the user cannot be changed")
    _check(_libc.capset(struct.pack("=II", 0x20080522, 0), struct.pack("=6I", *[0] * 6)), "capset")
    _prctl(38, 1)
    _prctl(4, 0)
    end_with_parent()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _limit(resource.RLIMIT_AS, memory)


def end_with_parent() -> None:
    """Be killed when the parent ends."""
    _prctl(1, 9)


def reap_orphans() -> None:
    """Inherit the children of children that have ended, so that they can be waited for."""
    _prctl(36, 1)


def _limit(kind: int, value: int) -> None:
    hard = resource.getrlimit(kind)[1]
    value = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (value, value))


def limit(seconds: float, memory: int) -> None:
    """Limits of the program's process: memory, CPU time, sizes of files, open files, threads."""
    _limit(resource.RLIMIT_AS, memory)
    _limit(resource.RLIMIT_CPU, int(seconds) + 2)
    _limit(resource.RLIMIT_FSIZE, LARGEST_FILE)
    _limit(resource.RLIMIT_NOFILE, 64)
    _limit(resource.RLIMIT_NPROC, 32)
    _limit(resource.RLIMIT_STACK, 8 << 20)


def landlock() -> None:
    """Allow reading below the libraries and no other use of files; for where a bare root cannot be had."""
    version = _syscall("landlock_create_ruleset", None, 0, 1)
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    ruleset = _syscall("landlock_create_ruleset", struct.pack("=Q", handled), 8, 0)
    for path in (*_SYSTEM_LIBRARIES, library()):
        if os.path.isdir(path):
            below = os.open(path, os.O_PATH | os.O_CLOEXEC)
            _syscall("landlock_add_rule", ruleset, 1, struct.pack("=Qi", 0b1100, below), 0)
            os.close(below)
    _prctl(38, 1)
    _syscall("landlock_restrict_self", ruleset, 0)
    os.close(ruleset)


# System calls and their numbers on x86-64 and 64-bit ARM (None: not there). A program may make those without a comment.
_CALLS: dict[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226),
    "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139), "pread64": (17, 67), "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66),
    "access": (21, None), "pipe": (22, None), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None), "pause": (34, None), "nanosleep": (35, 101),
    "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103), "getpid": (39, 172), "recvfrom": (45, 207),
    "exit": (60, 93), "wait4": (61, 260), "uname": (63, 160), "fcntl": (72, 25), "ftruncate": (77, 46),
    "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49), "rename": (82, None), "mkdir": (83, None),
    "rmdir": (84, None), "unlink": (87, None), "readlink": (89, None), "umask": (95, 166), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "times": (100, 153), "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175),
    "getegid": (108, 177), "getppid": (110, 173), "rt_sigpending": (127, 136), "rt_sigtimedwait": (128, 137),
    "rt_sigsuspend": (130, 133), "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None),
    "futex": (202, 98), "sched_getaffinity": (204, 123), "epoll_create": (213, None), "getdents64": (217, 61),
    "set_tid_address": (218, 96), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, None),
    "epoll_ctl": (233, 21), "openat": (257, 56), "mkdirat": (258, 34), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72), "ppoll": (271, 73),
    "set_robust_list": (273, 99), "epoll_pwait": (281, 22), "eventfd2": (290, 19), "epoll_create1": (291, 20),
    "dup3": (292, 24), "pipe2": (293, 59), "renameat2": (316, 276), "getrandom": (318, 278), "membarrier": (324, 283),
    "statx": (332, 291), "rseq": (334, 293), "close_range": (436, 436), "faccessat2": (439, 439),
}  # fmt: skip
# Those that are allowed, or refused, by what they are asked; and those that only the launcher makes.
_SPECIAL: dict[str, tuple[int | None, int | None]] = {
    "ioctl": (16, 29), "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131),
    "socketpair": (53, 199), "sendto": (44, 206), "prlimit64": (302, 261), "pivot_root": (155, 41),
    "mount_setattr": (442, 442), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_COLUMN, _AUDIT_ARCH = _MACHINES.get(platform.machine(), (None, 0))
_NUMBERS = {name: None if _COLUMN is None else numbers[_COLUMN] for name, numbers in (_CALLS | _SPECIAL).items()}
_ALLOW, _REFUSE, _MISSING, _KILL = 0x7FFF0000, 0x00050000 | 1, 0x00050000 | 38, 0x80000000
_THREAD = 0x10000
_TERMINAL_AND_CLOSE = (0x5401, 0x5413, 0x541B, 0x5421, 0x5450, 0x5451)


def allow_few_calls() -> None:
    """Refuse every system call that a computation does not need, for the rest of this process's life.

    So there are no new processes (threads are allowed), no programs to execute, no sockets but an unnamed pair, no
    signals to others, no looking into others. What is refused fails with EPERM. Raises `OSError` where
    that cannot be had.
    """
    if _COLUMN is None:
        raise OSError(f"no list of system calls for {platform.machine()}")
    pid = os.getpid()
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, _AUDIT_ARCH), (0x06, 0, 0, _KILL), (0x20, 0, 0, 0)]
    # Each block is skipped when the number is another; the low half of an argument holds ints.
    program += _if_call("clone3", [(0x06, 0, 0, _MISSING)])
    program += _if_call("clone", [_argument(0), (0x45, 0, 1, _THREAD), (0x06, 0, 0, _ALLOW), (0x06, 0, 0, _REFUSE)])
    for name, index, values in (
        ("kill", 0, (pid,)),
        ("tgkill", 0, (pid,)),
        ("ioctl", 1, _TERMINAL_AND_CLOSE),
        ("socketpair", 0, (1,)),
        ("prlimit64", 0, (0, pid)),
    ):
        allowed = [(0x15, len(values) - i, 0, value) for i, value in enumerate(values)]
        program += _if_call(name, [_argument(index), *allowed, (0x06, 0, 0, _REFUSE), (0x06, 0, 0, _ALLOW)])
    # A datagram to no address goes to the other end of a pair; both halves of the pointer are looked at.
    no_address = [_argument(4), (0x15, 0, 2, 0), _argument(4, high=True), (0x15, 1, 0, 0)]
    program += _if_call("sendto", [*no_address, (0x06, 0, 0, _REFUSE), (0x06, 0, 0, _ALLOW)])
    for numbers in _CALLS.values():
        if (number := numbers[_COLUMN]) is not None:
            program += [(0x15, 0, 1, number), (0x06, 0, 0, _ALLOW)]
    program.append((0x06, 0, 0, _REFUSE))
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *instruction) for instruction in program))
    header = struct.pack("@HP", len(program), ctypes.addressof(code))
    _prctl(38, 1)
    _check(_libc.prctl(22, ctypes.c_ulong(2), header, 0, 0), "seccomp")


def _argument(index: int, high: bool = False) -> tuple[int, int, int, int]:
    return (0x20, 0, 0, 16 + 8 * index + 4 * high)


def _if_call(name: str, block: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    number = _NUMBERS[name]
    assert number is not None
    return [(0x15, 0, len(block), number), *block]
