/*
 * Holds an address: adds it, renews its lease, and removes it at SIGTERM. Prints one line for each change.
 *
 *     address_holder ADDRESS SECONDS [SOCKET]     SECONDS is the length of the lease, at least 3
 *
 * It renews after a fifth of the lease. If the broker is out of reach, it tries again until the lease ends; from then on
 * this host must not use the address, and the program ends.
 */
#define _GNU_SOURCE /* ppoll */

#include <portreeve.h>

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define NAME "address-holder"
#define PAUSE_MS 100

static volatile sig_atomic_t terminated;

static void terminate(int signal_number) {
    (void)signal_number;
    terminated = 1;
}

static void report(const struct portreeve_error *error) {
    fprintf(stderr, "address_holder: %s%s%s\n", error->message, error->remedy[0] != '\0' ? ". " : "", error->remedy);
}

static long long now_ms(void) {
    struct timespec now;

    clock_gettime(CLOCK_BOOTTIME, &now);
    return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

/* Waits, except at SIGTERM, which arrives only here. */
static void wait_ms(long long milliseconds, const sigset_t *unblocked) {
    struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};

    (void)ppoll(NULL, 0, &time, unblocked);
}

/*
 * Renews the lease, and adds the address if the broker does not have it. Opens a session if there is none. Takes until the end
 * of the lease at most.
 */
static int hold(struct portreeve **session, const char *socket, const char *address,
                const struct portreeve_lease_options *options, long long end, struct portreeve_error *error) {
    struct portreeve_lease lease;
    long long left = end - now_ms();
    int timeout = left > 0 ? (int)left : 0, result;

    if (*session == NULL) {
        result = portreeve_connect(session, socket, NAME, timeout, error);
        if (result < 0)
            return result;
    }
    portreeve_set_timeout(*session, timeout);
    result = portreeve_renew_addresses(*session, &address, 1, options, &lease, 1, NULL, error);
    if (result == -ENOENT) {
        result = portreeve_add_addresses(*session, &address, 1, options, &lease, 1, NULL, error);
        if (result == 0)
            printf("added %s to %s\n", lease.address, lease.interface);
    } else if (result == 0) {
        printf("renewed %s\n", lease.address);
    }
    fflush(stdout);
    if (result < 0 && error->ended) {
        portreeve_close(*session);
        *session = NULL;
    }
    return result;
}

int main(int argc, char **argv) {
    struct portreeve_lease_options options = PORTREEVE_LEASE_OPTIONS;
    struct portreeve *session = NULL;
    struct portreeve_error error;
    const char *socket = argc == 4 ? argv[3] : PORTREEVE_DEFAULT_SOCKET, *address = argv[1];
    struct sigaction action;
    sigset_t blocked, unblocked;
    long long length, end, begin;
    int result;

    if (argc < 3 || argc > 4 || (length = strtol(argv[2], NULL, 10) * 1000) < 3000 || length > 86400000) {
        fprintf(stderr, "usage: address_holder ADDRESS SECONDS [SOCKET]\n");
        return 64;
    }
    options.present = PORTREEVE_HAS_LEASE;
    options.lease = (uint32_t)(length / 1000);
    memset(&action, 0, sizeof action);
    action.sa_handler = terminate;
    sigaction(SIGTERM, &action, NULL);
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGTERM);
    sigprocmask(SIG_BLOCK, &blocked, &unblocked);

    /* A lease ends no earlier than its length after the request for it was sent. */
    end = now_ms() + length;
    for (;;) {
        begin = now_ms();
        result = hold(&session, socket, address, &options, end, &error);
        if (result == 0) {
            end = begin + length;
            wait_ms(length / 5, &unblocked);
        } else {
            bool temporary = error.ended || result == -ENOENT || result == -ECONNREFUSED || result == -ETIMEDOUT ||
                             result == -EBUSY;

            report(&error);
            if (!temporary || now_ms() >= end)
                break;
            wait_ms(PAUSE_MS, &unblocked);
        }
        if (terminated) {
            result = session == NULL ? 0 : portreeve_remove_addresses(session, &address, 1, 0, NULL, 0, NULL, &error);
            if (result == 0)
                printf("removed %s\n", address);
            else
                report(&error);
            break;
        }
    }
    portreeve_close(session);
    return result != 0;
}
