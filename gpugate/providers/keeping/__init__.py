"""Keeping a command and its offspring alive no longer than somebody wants it; must not import gpugate.

The keeper is a process of its own, so these modules are the standard library and each other: they are run
as `python -I -S`, without site-packages, and are up in some 30 ms.
`gpugate.providers.supervised_process` is the gateway side of it.

- Every open connection to the keeper is a *lease*. The gateway's first one is the keeper's standard input;
  others come through a unix socket. No lease for `grace_s`: the family is sent SIGTERM, and SIGKILL
  `orphan_kill_s` later. A gateway that says `leave` first wants the command kept, for its next start.
- The *family* is whatever descends from the keeper. A subreaper (Linux) inherits double-forked and setsid'ed
  processes, so nobody escapes; elsewhere the command's process group has to do.
- There are two processes: the *guard* forks the keeper and waits. Were the keeper killed, the family falls
  to the guard, who ends it. Were both killed, the command gets SIGTERM from the kernel, and what is left
  carries a mark in its environment by which the next gateway finds and ends it.
- The state file exists as long as anything of the family may be alive, or tells how the command ended.
"""
