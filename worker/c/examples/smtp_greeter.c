/*
 * A mail server without privileges that listens on port 25, and greets one client after the other. It receives no mail.
 *
 *     smtp_greeter ENDPOINT [SOCKET]     for example: smtp_greeter '*:25'
 *
 * Run it as the broker's worker, or as a user who may use the control socket. SIGTERM stops it.
 */
#define _GNU_SOURCE /* ppoll */

#include <portreeve.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define NAME "smtp-greeter"
/* Milliseconds. The program serves nobody during an attempt to reconnect. */
#define RECONNECT_TIMEOUT 2000
#define FIRST_PAUSE_MS 100
#define MAX_PAUSE_MS 5000

static volatile sig_atomic_t terminated;

static void terminate(int signal_number) {
    (void)signal_number;
    terminated = 1;
}

static void report(const struct portreeve_error *error) {
    fprintf(stderr, "smtp_greeter: %s%s%s\n", error->message, error->remedy[0] != '\0' ? ". " : "", error->remedy);
}

/* The session, the listener and its number. */
struct server {
    struct portreeve *session;
    int listener;
    uint64_t id;
    bool is_worker;
    const char *endpoint, *socket;
};

/* Opens a session and requests the listener. The broker returns the same socket as long as it keeps the listener. */
static int open_listener(struct server *server, int timeout, struct portreeve_error *error) {
    int result, listener;

    result = server->is_worker
                 ? portreeve_inherit(&server->session, NAME, timeout, error)
                 : portreeve_connect(&server->session, server->socket, NAME, timeout, error);
    if (result < 0)
        return result;
    listener = portreeve_listen(server->session, server->endpoint, NULL, &server->id, error);
    if (listener >= 0 && portreeve_allows(server->session, "subscribe"))
        result = portreeve_subscribe(server->session, false, NULL, 0, NULL, error);
    if (listener < 0 || result < 0) {
        portreeve_close(server->session);
        server->session = NULL;
        if (listener >= 0)
            close(listener);
        return listener < 0 ? listener : result;
    }
    if (server->listener >= 0)
        close(server->listener);
    server->listener = listener;
    printf("listening on %s as %s\n", server->endpoint, portreeve_welcome(server->session)->peer);
    fflush(stdout);
    return 0;
}

/*
 * Tries to reach the next broker. If the last one was killed, its listener is gone but this program's socket still occupies
 * the endpoint, so the next broker can open the listener only after it is closed.
 */
static int reconnect(struct server *server, struct portreeve_error *error) {
    int result = open_listener(server, RECONNECT_TIMEOUT, error);

    if (result == -EADDRINUSE && server->listener >= 0) {
        close(server->listener);
        server->listener = -1;
        result = open_listener(server, RECONNECT_TIMEOUT, error);
    }
    return result;
}

/* Whether the next attempt to reach a broker can succeed. */
static bool is_temporary(const struct portreeve_error *error) {
    return error->ended || error->number == ENOENT || error->number == ECONNREFUSED || error->number == ETIMEDOUT ||
           error->number == EBUSY || error->number == EADDRINUSE;
}

static const char *reply_to(const char *line) {
    if (strncasecmp(line, "EHLO", 4) == 0 || strncasecmp(line, "HELO", 4) == 0)
        return "250 hello\r\n";
    if (strncasecmp(line, "NOOP", 4) == 0 || strncasecmp(line, "RSET", 4) == 0)
        return "250 done\r\n";
    if (strncasecmp(line, "QUIT", 4) == 0)
        return "221 closing\r\n";
    return "502 this server only greets\r\n";
}

static bool say(int client, const char *line) {
    size_t length = strlen(line);

    return send(client, line, length, MSG_NOSIGNAL) == (ssize_t)length;
}

/* Serves one client. An idle one is disconnected after 5 s. */
static void serve(int client) {
    const struct timeval idle = {5, 0};
    char line[512], *end;
    size_t used = 0;
    ssize_t length;
    const char *reply;

    if (setsockopt(client, SOL_SOCKET, SO_RCVTIMEO, &idle, sizeof idle) < 0 || !say(client, "220 greeter ready\r\n"))
        return;
    while (used < sizeof line - 1 && (length = recv(client, line + used, sizeof line - 1 - used, 0)) > 0) {
        used += (size_t)length;
        line[used] = '\0';
        while ((end = strchr(line, '\n')) != NULL) {
            reply = reply_to(line);
            if (!say(client, reply) || strncmp(reply, "221", 3) == 0)
                return;
            used -= (size_t)(end + 1 - line);
            memmove(line, end + 1, used + 1);
        }
    }
}

/* Prints the events that have arrived. Returns a negative number if the session has ended. */
static int take_events(struct server *server, struct portreeve_error *error) {
    struct portreeve_event event;
    int result;

    while ((result = portreeve_next_event(server->session, &event, 0, error)) > 0) {
        printf("event %u %s\n", event.code, event.detail);
        fflush(stdout);
    }
    return result;
}

static void end_session(struct server *server) {
    portreeve_close(server->session);
    server->session = NULL;
}

static void accept_client(struct server *server) {
    int client = accept(server->listener, NULL, NULL);

    if (client >= 0) {
        serve(client);
        close(client);
    } else if (errno == EINVAL) {
        /* The broker has stopped the listener, for example because it ends. A new request shows whether it can be had. */
        close(server->listener);
        server->listener = -1;
        end_session(server);
    }
}

/* Serves clients until SIGTERM, which arrives only during ppoll(2); while there is no broker too. */
static int run(struct server *server, const sigset_t *unblocked, struct portreeve_error *error) {
    struct pollfd ready[2];
    struct timespec wait;
    long pause = FIRST_PAUSE_MS;
    int result;

    while (!terminated) {
        if (server->session == NULL) {
            result = reconnect(server, error);
            if (result < 0 && !is_temporary(error))
                return result;
            if (result == 0) {
                pause = FIRST_PAUSE_MS;
                continue;
            }
            pause = pause * 2 > MAX_PAUSE_MS ? MAX_PAUSE_MS : pause * 2;
        } else {
            result = take_events(server, error);
            if (result < 0 && server->is_worker)
                return result; /* the broker has ended, and ends its worker */
            if (result < 0) {
                report(error);
                end_session(server);
                continue;
            }
        }
        wait.tv_sec = pause / 1000;
        wait.tv_nsec = pause % 1000 * 1000000;
        ready[0].fd = server->session == NULL ? -1 : portreeve_channel(server->session); /* poll(2) ignores -1 */
        ready[1].fd = server->listener;
        ready[0].events = ready[1].events = POLLIN;
        if (ppoll(ready, 2, server->session == NULL ? &wait : NULL, unblocked) > 0 && ready[1].revents != 0)
            accept_client(server);
    }
    return 0;
}

int main(int argc, char **argv) {
    struct server server = {NULL, -1, 0, false, NULL, PORTREEVE_DEFAULT_SOCKET};
    struct portreeve_error error;
    struct sigaction action;
    sigset_t blocked, unblocked;
    int result;

    if (argc < 2 || argc > 3) {
        fprintf(stderr, "usage: smtp_greeter ENDPOINT [SOCKET]\n");
        return 64;
    }
    server.endpoint = argv[1];
    if (argc == 3)
        server.socket = argv[2];
    server.is_worker = getenv("PORTREEVE_CHANNEL") != NULL;
    memset(&action, 0, sizeof action);
    action.sa_handler = terminate;
    sigaction(SIGTERM, &action, NULL);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &unblocked);

    result = open_listener(&server, PORTREEVE_DEFAULT_TIMEOUT, &error);
    if (result == 0)
        result = run(&server, &unblocked, &error);
    if (result == 0 && server.session != NULL)
        result = portreeve_stop(server.session, &server.id, 1, NULL, &error);
    if (result < 0)
        report(&error);
    else
        puts("stopped");
    portreeve_close(server.session);
    return result < 0;
}
