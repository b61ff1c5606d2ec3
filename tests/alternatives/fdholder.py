"""s6-fdholder: each retrieval starts a program, which then executes the program that uses the descriptor."""

import os
import socket
import subprocess
import sys

import measure

DIRECTORY = sys.argv[1]
PATH = os.path.join(DIRECTORY, "fdholder")


def retrieve(count):
    for _ in range(count):
        subprocess.run(["s6-fdholder-retrieve", PATH, "listener", "true"], check=True)


if __name__ == "__main__":
    measure.bring_up_loopback()
    rules = os.path.join(DIRECTORY, "rules", "uid", "0")
    os.makedirs(os.path.join(rules, "env"))
    open(os.path.join(rules, "allow"), "w").close()
    for name in ("S6_FDHOLDER_STORE_REGEX", "S6_FDHOLDER_RETRIEVE_REGEX"):
        with open(os.path.join(rules, "env", name), "w") as file:
            file.write(".*")
    command = ["s6-fdholder-daemon", "-1", "-i", os.path.join(DIRECTORY, "rules"), PATH]
    daemon = subprocess.Popen(command, stdout=subprocess.PIPE)
    daemon.stdout.readline()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 25))
        listener.listen(500)
        subprocess.run(["s6-fdholder-store", PATH, "listener"], stdin=listener, check=True)
    measure.measure("s6-fdholder-retrieve", 50, retrieve)
    daemon.terminate()
    daemon.wait()
