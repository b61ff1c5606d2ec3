/*
 * Every function of portreeve.h against a broker that permits all of them. The address is one of the broker's topology.
 *
 *     session SOCKET ADDRESS SECOND_ADDRESS FOREIGN_ADDRESS
 */
#include "portreeve.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define CHECK(condition)                                                                                            \
    do {                                                                                                            \
        if (!(condition)) {                                                                                         \
            fprintf(stderr, "%s:%d: not true: %s; last error %d: %s\n", __FILE__, __LINE__, #condition, error.number, \
                    error.message);                                                                                 \
            exit(1);                                                                                                \
        }                                                                                                           \
    } while (0)

static struct portreeve *session;
static struct portreeve_error error;

static void use_listeners(void) {
    static const struct portreeve_listen_request TWO[] = {{"127.0.0.1:25", NULL}, {"127.0.0.1:26", NULL}};
    static const struct portreeve_listen_request TWICE[] = {{"127.0.0.1:25", NULL}, {"127.0.0.1:25", NULL}};
    const struct portreeve_listen_options backlog = {.present = PORTREEVE_HAS_BACKLOG, .backlog = 7};
    struct portreeve_listener listeners[2];
    struct portreeve_stopped stopped;
    uint64_t ids[3], again;
    int copy;

    CHECK(portreeve_listen_many(session, TWO, 2, true, listeners, &error) == 0);
    CHECK(listeners[0].socket >= 0 && listeners[1].socket >= 0 && listeners[0].id != listeners[1].id);
    CHECK(fcntl(listeners[0].socket, F_GETFD) & FD_CLOEXEC);
    copy = portreeve_listen(session, "127.0.0.1:25", NULL, &again, &error);
    CHECK(copy >= 0 && again == listeners[0].id);
    CHECK(portreeve_listen(session, "127.0.0.1:25", &backlog, NULL, &error) == -EADDRINUSE);
    CHECK(error.fault == PORTREEVE_IN_USE && !error.ended && error.remedy[0] != '\0');
    close(copy);
    ids[0] = listeners[0].id;
    ids[1] = 999999;
    ids[2] = listeners[1].id;
    CHECK(portreeve_stop(session, ids, 3, &stopped, &error) == -ENOENT);
    CHECK(stopped.unknown_count == 1 && stopped.unknown[0] == 999999 && stopped.not_revoked_count == 0);
    CHECK(portreeve_stop(session, ids, 1, NULL, &error) == -ENOENT);
    close(listeners[0].socket);
    close(listeners[1].socket);
    CHECK(portreeve_listen_many(session, TWICE, 2, false, listeners, &error) == -EOPNOTSUPP);
    CHECK(listeners[0].socket == -1 && listeners[1].error.fault == PORTREEVE_UNSUPPORTED);
    CHECK(portreeve_listen(session, "[::1]:26/udp", NULL, NULL, &error) == -EACCES && error.fault == PORTREEVE_DENIED);
}

static void use_addresses(const char *first, const char *second, const char *foreign) {
    const char *both[] = {first, second}, *mixed[] = {first, foreign};
    struct portreeve_lease_options options = {PORTREEVE_HAS_LEASE, 30, 0, 7, 0, false};
    struct portreeve_lease leases[3];
    struct portreeve_removal removals[2];
    struct portreeve_renewal renewal;
    struct portreeve_address_row rows[2];
    size_t found;
    bool more;

    CHECK(portreeve_renew_addresses(session, both, 1, NULL, leases, 1, &found, &error) == -ENOENT && found == 1);
    CHECK(portreeve_add_addresses(session, both, 2, &options, leases, 3, &found, &error) == 0 && found == 2);
    CHECK(strcmp(leases[1].address, second) == 0 && leases[1].epoch == 7 && leases[1].deadline > 0);
    CHECK(leases[1].remaining_ms > 20000 && leases[1].remaining_ms <= 30000 && leases[1].interface[0] != '\0');
    CHECK(portreeve_add_addresses(session, mixed, 2, &options, leases, 1, &found, &error) == -EACCES && found == 2);
    CHECK(leases[0].error.number == 0 && error.fault == PORTREEVE_DENIED);
    options.present = PORTREEVE_HAS_UNTIL;
    options.until = leases[0].deadline + 5000000000u;
    CHECK(portreeve_renew_addresses(session, both, 1, &options, leases, 1, NULL, &error) == 0);
    CHECK(leases[0].deadline <= options.until && leases[0].deadline > options.until - 2000000000u);
    options.epoch = 6;
    CHECK(portreeve_renew_addresses(session, both, 1, &options, leases, 1, NULL, &error) == -ESTALE);
    CHECK(portreeve_renew_all(session, NULL, &renewal, &error) == 0 && renewal.renewed == 2 && renewal.not_renewed == 0);
    CHECK(renewal.deadline > renewal.now);
    CHECK(portreeve_announce_addresses(session, both, 2, 7, leases, 3, &found, &error) == 0 && found == 2);
    CHECK(portreeve_move_addresses(session, both, 1, "nowhere1", 7, false, NULL, 0, &found, &error) < 0 && found == 1);
    CHECK(portreeve_list_addresses(session, NULL, rows, 1, &found, &more, &error) == 0 && found == 1 && more);
    CHECK(strcmp(rows[0].lease.address, first) == 0 && rows[0].present && rows[0].lease.deadline > 0);
    CHECK(portreeve_list_addresses(session, first, rows, 2, &found, &more, &error) == 0 && found == 1 && !more);
    CHECK(strcmp(rows[0].lease.address, second) == 0 && strncmp(rows[0].holder, "user ", 5) == 0);
    CHECK(portreeve_remove_addresses(session, both, 2, 7, removals, 2, &found, &error) == 0 && found == 2);
    CHECK(removals[0].verified && strcmp(removals[1].address, second) == 0);
    CHECK(portreeve_remove_addresses(session, both, 1, 7, removals, 2, &found, &error) == -ENOENT);
}

/* The events of both addresses have arrived by now. */
static void use_events(const char *first, const char *second) {
    struct portreeve_event event;
    int added = 0, removed = 0;

    while (removed < 2) {
        CHECK(portreeve_next_event(session, &event, 10000, &error) == 1);
        if (strcmp(event.address, first) != 0 && strcmp(event.address, second) != 0)
            continue;
        added += event.code == PORTREEVE_ADDRESS_ADDED;
        removed += event.code == PORTREEVE_ADDRESS_REMOVED;
    }
    CHECK(added == 2);
    CHECK(portreeve_unsubscribe(session, &error) == 0);
}

int main(int argc, char **argv) {
    struct portreeve_event recent[PORTREEVE_MAX_RECENT];
    size_t found;

    CHECK(argc == 5);
    CHECK(portreeve_connect(&session, argv[1], "test", PORTREEVE_DEFAULT_TIMEOUT, &error) == 0);
    CHECK(portreeve_welcome(session)->broker != 0 && portreeve_allows(session, "listen"));
    CHECK(portreeve_ping(session, &error) == 0);
    CHECK(portreeve_subscribe(session, false, recent, PORTREEVE_MAX_RECENT, &found, &error) == 0);
    use_listeners();
    use_addresses(argv[2], argv[3], argv[4]);
    use_events(argv[2], argv[3]);
    portreeve_close(session);
    puts("all tests passed");
    return 0;
}
