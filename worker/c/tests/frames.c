/*
 * Tests of portreeve.c without a broker: requests against the golden frames of the protocol, replies of a broker that is
 * correct, broken or hostile. Built with the sanitizers of the compiler.
 *
 *     frames FRAMES.TXT
 */
#include "portreeve.c"

#include <signal.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <sys/wait.h>

#define CHECK(condition)                                                                   \
    do {                                                                                   \
        if (!(condition)) {                                                                \
            fprintf(stderr, "%s:%d: not true: %s\n", __FILE__, __LINE__, #condition);      \
            describe();                                                                    \
            abort();                                                                       \
        }                                                                                  \
    } while (0)

#define ROUNDS 1000
/* Milliseconds until a broker that should act at once counts as broken. */
#define PATIENCE 20000

/* ---- The golden frames ---- */

struct golden {
    char name[64];
    unsigned char bytes[1024];
    size_t length;
};

static struct golden golden[200];
static size_t golden_count;

/* The state of the running test, for a failed check. */
static const char *running = "";
static unsigned char sent[70000];
static size_t sent_length;
static struct portreeve_error error;

static void describe(void) {
    size_t i;

    fprintf(stderr, "in %s; last error %d: %s\nthe reply:", running, error.number, error.message);
    for (i = 0; i < sent_length && i < 300; i++)
        fprintf(stderr, " %02x", sent[i]);
    fprintf(stderr, "\n");
}

static void read_golden(const char *path) {
    FILE *file = fopen(path, "r");
    char line[256], *at, *end;
    struct golden *last = NULL;

    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (line[0] == '[') {
            CHECK(golden_count < sizeof golden / sizeof golden[0]);
            last = &golden[golden_count++];
            line[strcspn(line, "]")] = '\0';
            snprintf(last->name, sizeof last->name, "%.60s", line + 1);
        } else if (line[0] != '#' && last != NULL) {
            for (at = line;; at = end) {
                unsigned long byte = strtoul(at, &end, 16);
                if (end == at)
                    break;
                CHECK(byte < 256 && last->length < sizeof last->bytes);
                last->bytes[last->length++] = (unsigned char)byte;
            }
        }
    }
    fclose(file);
}

static const struct golden *find(const char *name) {
    size_t i;

    for (i = 0; i < golden_count; i++)
        if (strcmp(golden[i].name, name) == 0)
            return &golden[i];
    fprintf(stderr, "there is no golden frame %s\n", name);
    exit(1);
}

/* ---- A broker's end of a channel ---- */

struct pair {
    struct portreeve *session;
    int broker;
};

/* A session after hello, whose next request has this number. */
static struct pair connected(uint32_t next) {
    int ends[2];
    struct pair pair;

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    CHECK(new_session(&pair.session, ends[0], PATIENCE, &error) == 0);
    pair.session->last_request = next - 1;
    pair.session->welcome.features = FEATURE_LEASE_TIMES;
    pair.broker = ends[1];
    return pair;
}

static void disconnect(struct pair pair) {
    portreeve_close(pair.session);
    if (pair.broker >= 0)
        close(pair.broker);
}

static uint32_t request_of(const unsigned char *frame) {
    struct reader from = {frame + 8, 4, false};
    return get_u32(&from);
}

static void reply_with(int broker, const unsigned char *bytes, size_t length, size_t descriptors) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(8 * sizeof(int))];
    } control;
    struct iovec data;
    struct msghdr message;
    int files[8];
    size_t i;

    memcpy(sent, bytes, length);
    sent_length = length;
    memset(&message, 0, sizeof message);
    memset(&control, 0, sizeof control);
    data.iov_base = sent;
    data.iov_len = length;
    message.msg_iov = &data;
    message.msg_iovlen = 1;
    for (i = 0; i < descriptors; i++)
        CHECK((files[i] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0);
    if (descriptors > 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = CMSG_SPACE(descriptors * sizeof(int));
        CMSG_FIRSTHDR(&message)->cmsg_level = SOL_SOCKET;
        CMSG_FIRSTHDR(&message)->cmsg_type = SCM_RIGHTS;
        CMSG_FIRSTHDR(&message)->cmsg_len = CMSG_LEN(descriptors * sizeof(int));
        memcpy(CMSG_DATA(CMSG_FIRSTHDR(&message)), files, descriptors * sizeof(int));
    }
    CHECK(sendmsg(broker, &message, MSG_NOSIGNAL) == (ssize_t)length);
    for (i = 0; i < descriptors; i++)
        close(files[i]);
}

static void reply_golden(int broker, const char *name, uint32_t request) {
    const struct golden *frame = find(name);
    unsigned char copy[1024];

    memcpy(copy, frame->bytes, frame->length);
    if (request_of(copy) != 0) {
        copy[8] = (unsigned char)request;
        copy[9] = (unsigned char)(request >> 8);
        copy[10] = (unsigned char)(request >> 16);
        copy[11] = (unsigned char)(request >> 24);
    }
    reply_with(broker, copy, frame->length, copy[14]);
}

static size_t receive_request(int broker, unsigned char *into, size_t size) {
    ssize_t length = recv(broker, into, size, MSG_DONTWAIT);

    CHECK(length > 0);
    return (size_t)length;
}

/* The lowest free descriptor: it stays the same if none leaks. */
static int next_descriptor(void) {
    int lowest = dup(0);

    CHECK(lowest >= 0);
    close(lowest);
    return lowest;
}

/* ---- Calls, by the name of their golden request ---- */

#define ROOM 3

static const char *const ADDRESSES[] = {"192.0.2.1", "2001:db8::1"};
static const struct portreeve_listen_options EVERY_OPTION = {
    .present = PORTREEVE_HAS_BACKLOG | PORTREEVE_HAS_RECEIVE_BUFFER | PORTREEVE_HAS_SEND_BUFFER | PORTREEVE_HAS_MODE |
               PORTREEVE_HAS_NO_DELAY,
    .backlog = 1024,
    .receive_buffer = 0,
    .send_buffer = 262144,
    .mode = 0660,
    .no_delay = false,
    .reuse_port = true,
    .dual_stack = true,
    .free_bind = true,
    .device = "eth0",
    .defer_accept = 30,
    .fast_open = 16,
};
static const struct portreeve_lease_options TEN_SECONDS = {PORTREEVE_HAS_LEASE, 10, 0, 42, 3, true};
static const struct portreeve_lease_options UNTIL = {PORTREEVE_HAS_UNTIL, 0, 7009999999999, 42, 3, true};
static const struct portreeve_lease_options EPOCH = {0, 0, 0, 42, 0, false};

static uint64_t id;
static struct portreeve_listener listeners[2];
static struct portreeve_stopped stopped;
static struct portreeve_lease leases[ROOM];
static struct portreeve_removal removals[ROOM];
static struct portreeve_renewal renewal;
static struct portreeve_address_row rows[ROOM];
static struct portreeve_event events[ROOM];
static size_t found;
static bool more;

static bool is_terminated(const char *text, size_t size) {
    return memchr(text, '\0', size) != NULL && is_utf8(text, strlen(text));
}

static void check_error(const struct portreeve_error *why) {
    CHECK(why->number >= 0 && is_terminated(why->subject, sizeof why->subject));
    CHECK(is_terminated(why->message, sizeof why->message) && is_terminated(why->remedy, sizeof why->remedy));
}

static void check_lease(const struct portreeve_lease *lease) {
    check_error(&lease->error);
    CHECK(is_terminated(lease->address, sizeof lease->address) && is_terminated(lease->follows, sizeof lease->follows));
    CHECK(is_terminated(lease->interface, sizeof lease->interface));
}

static void check_event(const struct portreeve_event *event) {
    CHECK(is_terminated(event->address, sizeof event->address) && is_terminated(event->detail, sizeof event->detail));
    CHECK(is_terminated(event->interface, sizeof event->interface));
}

static int perform_addresses(const char *name, struct portreeve *session) {
    size_t i;
    int result;

    if (strcmp(name, "add-address") == 0)
        result = portreeve_add_addresses(session, ADDRESSES, 2, &TEN_SECONDS, leases, ROOM, &found, &error);
    else if (strcmp(name, "add-address-until") == 0)
        result = portreeve_add_addresses(session, ADDRESSES, 2, &UNTIL, leases, ROOM, &found, &error);
    else if (strcmp(name, "renew-address") == 0)
        result = portreeve_renew_addresses(session, ADDRESSES, 2, &EPOCH, leases, ROOM, &found, &error);
    else if (strcmp(name, "renew-address-until") == 0)
        result = portreeve_renew_addresses(session, ADDRESSES, 2, &UNTIL, leases, ROOM, &found, &error);
    else if (strcmp(name, "announce") == 0)
        result = portreeve_announce_addresses(session, ADDRESSES, 2, 42, leases, ROOM, &found, &error);
    else
        result = portreeve_move_addresses(session, ADDRESSES, 2, "eth2", 42, true, leases, ROOM, &found, &error);
    for (i = 0; i < ROOM && i < found; i++)
        check_lease(&leases[i]);
    CHECK(found <= PORTREEVE_MAX_ADDRESSES && (result != 0 || found >= 2));
    return result;
}

/* Performs the call that has this golden request. Closes the sockets that it gets. */
static int perform(const char *name, struct portreeve *session) {
    static const struct portreeve_listen_request TWO[] = {{"192.0.2.1:25", NULL}, {"192.0.2.2:25", NULL}};
    static const uint64_t IDS[] = {7, UINT64_MAX};
    size_t i;
    int result;

    memset(&error, 0, sizeof error);
    found = 0;
    if (strcmp(name, "hello") == 0) {
        result = hello(session, "smtpd", 0, &error);
        CHECK(is_terminated(session->welcome.peer, sizeof session->welcome.peer));
        for (i = 0; i < 32; i++)
            CHECK(is_terminated(session->welcome.operations[i], sizeof session->welcome.operations[i]));
    } else if (strcmp(name, "ping") == 0) {
        result = portreeve_ping(session, &error);
    } else if (strncmp(name, "listen", 6) == 0 && strcmp(name, "listen-many") != 0) {
        const char *endpoint = strcmp(name, "listen-tcp6") == 0             ? "[2001:db8::1]:465"
                               : strcmp(name, "listen-udp") == 0            ? "[fe80::1%eth0]:53/udp"
                               : strcmp(name, "listen-unix-stream") == 0    ? "/run/mail.sock"
                               : strcmp(name, "listen-unix-seqpacket") == 0 ? "seqpacket:/run/mail.sock"
                                                                            : "*:25";
        result = portreeve_listen(session, endpoint, strcmp(name, "listen-tcp6") == 0 ? &EVERY_OPTION : NULL, &id, &error);
        if (result >= 0) {
            CHECK(id != 0 && (fcntl(result, F_GETFD) & FD_CLOEXEC) != 0);
            close(result);
            result = 0;
        }
    } else if (strcmp(name, "listen-many") == 0) {
        result = portreeve_listen_many(session, TWO, 2, true, listeners, &error);
        for (i = 0; i < 2; i++) {
            check_error(&listeners[i].error);
            CHECK((listeners[i].socket >= 0) == (listeners[i].error.number == 0 && listeners[i].id != 0));
            if (listeners[i].socket >= 0)
                close(listeners[i].socket);
        }
    } else if (strcmp(name, "stop") == 0) {
        result = portreeve_stop(session, IDS, 2, &stopped, &error);
        CHECK(stopped.unknown_count <= PORTREEVE_MAX_LISTENERS && stopped.not_revoked_count <= PORTREEVE_MAX_LISTENERS);
    } else if (strcmp(name, "remove-address") == 0) {
        result = portreeve_remove_addresses(session, ADDRESSES, 2, 42, removals, ROOM, &found, &error);
        for (i = 0; i < ROOM && i < found; i++)
            check_error(&removals[i].error);
    } else if (strcmp(name, "renew-all") == 0) {
        result = portreeve_renew_all(session, &UNTIL, &renewal, &error);
    } else if (strcmp(name, "list-addresses") == 0) {
        result = portreeve_list_addresses(session, "192.0.2.1", rows, ROOM, &found, &more, &error);
        CHECK(found <= ROOM);
        for (i = 0; i < found; i++) {
            check_lease(&rows[i].lease);
            CHECK(is_terminated(rows[i].holder, sizeof rows[i].holder));
        }
    } else if (strcmp(name, "subscribe") == 0) {
        result = portreeve_subscribe(session, false, events, ROOM, &found, &error);
        CHECK(found <= ROOM);
        for (i = 0; i < found; i++)
            check_event(&events[i]);
    } else if (strcmp(name, "event") == 0) {
        result = portreeve_next_event(session, &events[0], 0, &error);
        if (result > 0)
            check_event(&events[0]);
    } else {
        result = perform_addresses(name, session);
    }
    check_error(&error);
    CHECK(result >= 0 || error.number == -result);
    return result;
}

/* ---- The golden frames ---- */

static const struct exchange {
    const char *request; /* "event" is no request */
    const char *reply;
    int result;
} EXCHANGES[] = {
    {"hello", "hello-reply", 0},
    {"ping", "ping-reply", 0},
    {"listen", "listen-reply", 0},
    {"listen-tcp6", "listen-reply", 0},
    {"listen-udp", "listen-reply", 0},
    {"listen-unix-stream", "listen-reply", 0},
    {"listen-unix-seqpacket", "listen-reply", 0},
    {"listen", "fault-denied", -EACCES},
    {"listen", "fault-not-retained", -EPERM},
    {"listen", "fault-in-use", -EADDRINUSE},
    {"listen", "fault-not-local", -EADDRNOTAVAIL},
    {"listen", "fault-unknown-interface", -ENODEV},
    {"listen", "fault-tentative", -EAGAIN},
    {"listen", "fault-conflict", -EEXIST},
    {"listen", "fault-quota", -EDQUOT},
    {"listen", "fault-malformed", -EBADMSG},
    {"listen", "fault-unsupported", -EOPNOTSUPP},
    {"listen", "fault-busy", -EBUSY},
    {"listen", "fault-expired", -ESTALE},
    {"listen", "fault-os", -ENOBUFS},
    {"listen", "fault-not-found", -ENOENT},
    {"listen", "fault-invalid", -EINVAL},
    {"listen", "fault-of-a-later-version", -EIO},
    {"listen-many", "listen-many-reply", -EADDRNOTAVAIL},
    {"stop", "stop-reply", -ENOENT},
    {"add-address", "add-address-reply", -EEXIST},
    {"add-address", "add-address-times", -EEXIST},
    {"add-address-until", "add-address-times", -EEXIST},
    {"renew-address", "renew-address-reply", -EEXIST},
    {"renew-address-until", "renew-address-reply", -EEXIST},
    {"renew-all", "renew-all-reply", 0},
    {"remove-address", "remove-address-reply", -ENOENT},
    {"announce", "announce-reply", -EEXIST},
    {"move-address", "move-address-reply", -EEXIST},
    {"list-addresses", "list-addresses-reply", 0},
    {"list-addresses", "list-addresses-times", 0},
    {"subscribe", "subscribe-reply", 0},
    {"event", "event", 1},
    {"event", "event-gap", 1},
};

#define EXCHANGE_COUNT (sizeof EXCHANGES / sizeof EXCHANGES[0])

static bool is_request(const struct exchange *exchange) {
    return strcmp(exchange->request, "event") != 0;
}

static uint32_t number_of(const struct exchange *exchange) {
    return is_request(exchange) ? request_of(find(exchange->request)->bytes) : 1;
}

/* Performs an exchange with this reply in place of the golden one. The session's memory is used again, for speed. */
static int exchange_with(const struct exchange *exchange, const unsigned char *reply, size_t length, size_t descriptors,
                         bool *ended) {
    static struct portreeve session;
    int ends[2], result;

    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, ends) == 0);
    memset(&session, 0, offsetof(struct portreeve, outgoing));
    session.channel = ends[0];
    session.process = getpid();
    session.last_request = number_of(exchange) - 1;
    session.welcome.features = FEATURE_LEASE_TIMES;
    reply_with(ends[1], reply, length, descriptors);
    result = perform(exchange->request, &session);
    *ended = session.end.number != 0;
    CHECK(result >= 0 || error.ended == *ended || result == -ETIMEDOUT);
    close(ends[0]);
    close(ends[1]);
    return result;
}

static void every_request_and_reply_is_golden(void) {
    unsigned char request[1024];
    size_t i, length;

    for (i = 0; i < EXCHANGE_COUNT; i++) {
        const struct exchange *exchange = &EXCHANGES[i];
        const struct golden *reply = find(exchange->reply);
        struct pair pair = connected(number_of(exchange));
        int result;

        running = exchange->reply;
        reply_with(pair.broker, reply->bytes, reply->length, reply->bytes[14]);
        result = perform(exchange->request, pair.session);
        CHECK(result == exchange->result);
        CHECK(error.ended == (strcmp(exchange->reply, "fault-malformed") == 0));
        if (is_request(exchange)) {
            const struct golden *wanted = find(exchange->request);

            running = exchange->request;
            length = receive_request(pair.broker, request, sizeof request);
            CHECK(length == wanted->length && memcmp(request, wanted->bytes, length) == 0);
        }
        disconnect(pair);
    }
}

static void run_golden(const char *request, const char *reply) {
    struct exchange exchange = {request, reply, 0};
    const struct golden *frame = find(reply);
    bool ended;

    running = reply;
    (void)exchange_with(&exchange, frame->bytes, frame->length, frame->bytes[14], &ended);
}

static void every_decoded_field_has_its_value(void) {
    struct pair pair = connected(1);
    const struct portreeve_welcome *welcome = portreeve_welcome(pair.session);

    reply_golden(pair.broker, "hello-reply", 1);
    CHECK(perform("hello", pair.session) == 0);
    CHECK(welcome->broker == 1234 && strcmp(welcome->release, "0.1.0") == 0 && welcome->capabilities == 1 << 10);
    CHECK(strcmp(welcome->peer, "user 8") == 0 && welcome->operation_count == 3);
    CHECK(portreeve_allows(pair.session, "listen") && !portreeve_allows(pair.session, "stop"));
    disconnect(pair);

    run_golden("listen", "listen-reply");
    CHECK(id == 7);
    run_golden("listen", "fault-denied");
    CHECK(error.fault == PORTREEVE_DENIED && strcmp(error.subject, "mail.conf:7: listen *:587") == 0);
    CHECK(strcmp(error.message, "user 8 is not allowed to listen on *:25") == 0);
    CHECK(strcmp(error.remedy, "add *:25 to a permit") == 0);
    CHECK(strcmp(portreeve_fault_name(error.fault), "denied") == 0 && strcmp(portreeve_fault_name(700), "unknown") == 0);
    run_golden("listen-many", "listen-many-reply");
    CHECK(listeners[0].id == 8 && listeners[1].socket == -1 && listeners[1].error.fault == PORTREEVE_NOT_LOCAL);
    run_golden("stop", "stop-reply");
    CHECK(stopped.unknown_count == 1 && stopped.unknown[0] == UINT64_MAX);
    CHECK(stopped.not_revoked_count == 1 && stopped.not_revoked[0] == 7);
    run_golden("add-address", "add-address-times");
    CHECK(found == 2 && strcmp(leases[0].address, "192.0.2.1") == 0 && strcmp(leases[0].interface, "eth1") == 0);
    CHECK(leases[0].prefix == 32 && leases[0].remaining_ms == 9999 && leases[0].epoch == 42);
    CHECK(strcmp(leases[0].follows, "192.0.2.9") == 0 && leases[0].deadline == 7009999999999);
    CHECK(leases[1].error.fault == PORTREEVE_CONFLICT && leases[1].address[0] == '\0');
    run_golden("renew-all", "renew-all-reply");
    CHECK(renewal.now == 7000000000000 && renewal.deadline == 7009999999999 && renewal.renewed == 10000);
    CHECK(renewal.not_renewed == 1 && renewal.ipv4_fenced && !renewal.ipv6_fenced);
    run_golden("remove-address", "remove-address-reply");
    CHECK(found == 2 && strcmp(removals[0].address, "192.0.2.1") == 0 && removals[0].verified);
    run_golden("list-addresses", "list-addresses-times");
    CHECK(found == 1 && !more && strcmp(rows[0].holder, "the worker") == 0 && rows[0].present);
    CHECK(rows[0].lease.deadline == 7009999999999 && rows[0].lease.epoch == 42);
    run_golden("subscribe", "subscribe-reply");
    CHECK(found == 2 && events[0].number == 300 && events[0].code == PORTREEVE_ADDRESS_CONFLICT);
    CHECK(strcmp(events[0].address, "192.0.2.1") == 0 && strcmp(events[0].detail, "02:00:00:00:00:09") == 0);
    CHECK(events[0].time_ms == 1700000000000 && events[0].index == 2 && events[0].epoch == 42);
    CHECK(events[1].code == PORTREEVE_WORKER_STARTED && events[1].pid == 4711 && events[1].count == 2);
    run_golden("event", "event-gap");
    CHECK(events[0].code == PORTREEVE_GAP && events[0].count == 7 && events[0].number == 0);
}

/* ---- A broken broker ---- */

static void set_body_length(unsigned char *frame, size_t length) {
    frame[12] = (unsigned char)(length - HEADER_SIZE);
    frame[13] = (unsigned char)((length - HEADER_SIZE) >> 8);
}

static uint64_t state = 88172645463325252u;

/* xorshift64: the same sequence in every run. */
static uint32_t random_below(uint32_t limit) {
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 16) % limit;
}

static void no_truncated_reply_is_accepted(void) {
    unsigned char copy[1024];
    size_t i, length;
    bool ended;

    for (i = 0; i < EXCHANGE_COUNT; i++) {
        const struct exchange *exchange = &EXCHANGES[i];
        const struct golden *frame = find(exchange->reply);
        bool has_times = strstr(exchange->reply, "-times") != NULL;
        size_t without_times = has_times ? find(strcmp(exchange->request, "list-addresses") == 0 ? "list-addresses-reply"
                                                                                                  : "add-address-reply")
                                               ->length
                                         : 0;

        running = exchange->reply;
        for (length = 1; length <= frame->length + 1; length++) {
            memset(copy, 0, sizeof copy);
            memcpy(copy, frame->bytes, length < frame->length ? length : frame->length);
            if (length < frame->length) { /* the header disagrees with the length of the packet */
                CHECK(exchange_with(exchange, copy, length, copy[14], &ended) == -EPROTO && ended);
            }
            if (length == frame->length || length < HEADER_SIZE || length == without_times)
                continue;
            set_body_length(copy, length);
            CHECK(exchange_with(exchange, copy, length, copy[14], &ended) == -EPROTO && ended);
        }
    }
}

static void a_changed_reply_breaks_nothing(void) {
    static const unsigned char VALUES[] = {0, 1, 2, 0x7f, 0x80, 0xff};
    unsigned char copy[1200];
    size_t i, at, value, round, changes, length;
    int before = next_descriptor();
    bool ended;

    for (i = 0; i < EXCHANGE_COUNT; i++) {
        const struct exchange *exchange = &EXCHANGES[i];
        const struct golden *frame = find(exchange->reply);

        running = exchange->reply;
        for (at = 0; at < frame->length; at++)
            for (value = 0; value < sizeof VALUES + 8; value++) {
                memcpy(copy, frame->bytes, frame->length);
                copy[at] = value < sizeof VALUES ? VALUES[value]
                                                 : (unsigned char)(copy[at] ^ (1u << (value - sizeof VALUES)));
                (void)exchange_with(exchange, copy, frame->length, frame->bytes[14], &ended);
            }
        for (round = 0; round < ROUNDS; round++) {
            memset(copy, (int)random_below(256), sizeof copy);
            memcpy(copy, frame->bytes, frame->length);
            for (changes = random_below(5); changes > 0; changes--)
                copy[HEADER_SIZE + random_below((uint32_t)(frame->length - HEADER_SIZE + 1))] =
                    random_below(3) == 0 ? VALUES[random_below(sizeof VALUES)] : (unsigned char)random_below(256);
            length = random_below(4) == 0 ? HEADER_SIZE + random_below((uint32_t)frame->length) : frame->length;
            if (random_below(4) != 0)
                set_body_length(copy, length);
            copy[14] = random_below(4) == 0 ? (unsigned char)random_below(4) : copy[14];
            (void)exchange_with(exchange, copy, length, random_below(4) == 0 ? random_below(4) : copy[14] % 8, &ended);
        }
        CHECK(next_descriptor() == before);
    }
}

static void a_reply_with_other_descriptors_ends_the_session(void) {
    struct exchange listen_one = {"listen", "listen-reply", 0}, ping = {"ping", "ping-reply", 0};
    unsigned char copy[1024];
    int before = next_descriptor();
    size_t count;
    bool ended;

    running = "descriptors";
    for (count = 0; count < 4; count++) {
        const struct golden *frame = find("listen-reply");

        memcpy(copy, frame->bytes, frame->length);
        copy[14] = (unsigned char)count;
        if (count != 1) {
            CHECK(exchange_with(&listen_one, copy, frame->length, count, &ended) == -EPROTO && ended);
            CHECK(exchange_with(&listen_one, frame->bytes, frame->length, count, &ended) == -EPROTO && ended);
        }
        frame = find("ping-reply");
        memcpy(copy, frame->bytes, frame->length);
        copy[14] = (unsigned char)count;
        CHECK(exchange_with(&ping, copy, frame->length, count, &ended) == (count == 0 ? 0 : -EPROTO));
    }
    for (count = 0; count < 4; count++) {
        struct exchange event = {"event", "event", 0};
        const struct golden *frame = find("event");

        memcpy(copy, frame->bytes, frame->length);
        CHECK(exchange_with(&event, copy, frame->length, count, &ended) == (count == 0 ? 1 : -EPROTO));
        copy[14] = (unsigned char)count; /* an event has none, and those of a later release are closed */
        CHECK(exchange_with(&event, copy, frame->length, count, &ended) == 1 && !ended);
        CHECK(count == 0 || exchange_with(&event, copy, frame->length, 0, &ended) == -EPROTO);
    }
    CHECK(next_descriptor() == before);
}

/* Each row is a reply with one byte changed, counted from its end, or from its beginning if the offset is negative, and
 * with its last bytes cut. */
static void every_value_has_one_encoding(void) {
    static const struct {
        const char *request, *reply;
        int offset;
        unsigned char value;
        size_t cut;
    } ROWS[] = {
        {"ping", "ping-reply", -15, 1, 0}, /* the reserved byte */
        {"listen", "listen-reply", -6, 2, 0}, /* the kind of another operation */
        {"hello", "hello-reply", -33, 1, 0}, /* a feature that was not offered */
        {"listen", "listen-reply", 8, 0, 0}, /* listener 0 */
        {"subscribe", "subscribe-reply", -16, 2, 0}, /* a bool */
        {"list-addresses", "list-addresses-reply", 1, 2, 0}, /* a bool */
        {"list-addresses", "list-addresses-times", 1, 2, 0}, /* a bool of `Bounds` */
        {"renew-all", "renew-all-reply", 1, 2, 0}, /* a bool */
        {"add-address", "add-address-reply", -24, 2, 0}, /* the tag of an outcome */
        {"add-address", "add-address-reply", -28, 2, 0}, /* the tag of an address */
        {"add-address", "add-address-times", 33, 2, 0}, /* trailing(T) */
        {"add-address", "add-address-times", 24, 1, 8}, /* a list of deadlines with another length */
        {"remove-address", "remove-address-reply", -36, 2, 0}, /* a bool */
        {"stop", "stop-reply", -24, 1, 0}, /* a number that the request did not have */
        {"listen-many", "listen-many-reply", -16, 1, 0}, /* another number of results */
        {"listen-many", "listen-many-reply", -24, 2, 0}, /* the tag of an outcome */
        {"event", "event", -34, 2, 0}, /* option(T) */
    };
    unsigned char copy[1024];
    size_t i;
    bool ended;

    for (i = 0; i < sizeof ROWS / sizeof ROWS[0]; i++) {
        struct exchange exchange = {ROWS[i].request, ROWS[i].reply, 0};
        const struct golden *frame = find(ROWS[i].reply);
        size_t at = ROWS[i].offset < 0 ? (size_t)-ROWS[i].offset : frame->length - (size_t)ROWS[i].offset;

        running = ROWS[i].reply;
        memcpy(copy, frame->bytes, frame->length);
        CHECK(copy[at] != ROWS[i].value);
        copy[at] = ROWS[i].value;
        set_body_length(copy, frame->length - ROWS[i].cut);
        CHECK(exchange_with(&exchange, copy, frame->length - ROWS[i].cut, frame->bytes[14], &ended) == -EPROTO && ended);
    }
}

/* The decoders get a body of exactly its length on the heap, so that the sanitizer sees a read beyond it. */
static void decoders_read_no_byte_after_the_body(void) {
    static struct portreeve_welcome welcome;
    static struct portreeve_event event;
    static struct portreeve_error fault;
    static const uint64_t IDS[] = {7, UINT64_MAX};
    struct outcome outcome;
    size_t i, length, number;

    for (i = 0; i < golden_count; i++)
        for (length = 0; length <= golden[i].length - HEADER_SIZE; length++)
            for (number = 0; number < 8; number++) {
                unsigned char *copy = malloc(length > 0 ? length : 1);
                struct reader from = {copy, length, false};

                running = golden[i].name;
                CHECK(copy != NULL);
                memcpy(copy, golden[i].bytes + HEADER_SIZE, length);
                if (number == 0)
                    get_welcome(&from, &welcome);
                else if (number == 1)
                    get_fault(&from, &fault);
                else if (number == 2)
                    get_event(&from, &event);
                else if (number == 3)
                    get_leases(&from, leases, ROOM, &outcome);
                else if (number == 4)
                    get_removals(&from, removals, ROOM, &outcome);
                else if (number == 5)
                    get_page(&from, rows, ROOM, &found, &more);
                else if (number == 6)
                    get_recent(&from, events, ROOM, &found);
                else
                    get_stopped(&from, stopped.unknown, &stopped.unknown_count, IDS, 2);
                CHECK(from.left <= length);
                free(copy);
            }
}

static void results_beyond_the_room_are_only_counted(void) {
    static struct portreeve_lease one[1];
    static struct portreeve_removal removed[1];
    static struct portreeve_event last[1];
    static const char *const THREE[] = {"192.0.2.1", "192.0.2.2", "192.0.2.3"};
    struct pair pair = connected(1);

    running = "room";
    reply_golden(pair.broker, "add-address-times", 1);
    CHECK(portreeve_add_addresses(pair.session, ADDRESSES, 2, NULL, one, 1, &found, &error) == -EEXIST && found == 2);
    CHECK(one[0].deadline == 7009999999999);
    reply_golden(pair.broker, "add-address-reply", 2);
    CHECK(portreeve_add_addresses(pair.session, ADDRESSES, 2, NULL, NULL, 0, NULL, &error) == -EEXIST);
    reply_golden(pair.broker, "remove-address-reply", 3);
    CHECK(portreeve_remove_addresses(pair.session, ADDRESSES, 2, 0, removed, 1, &found, &error) == -ENOENT && found == 2);
    reply_golden(pair.broker, "subscribe-reply", 4);
    CHECK(portreeve_subscribe(pair.session, false, last, 1, &found, &error) == 0 && found == 1 && last[0].number == 301);
    reply_golden(pair.broker, "subscribe-reply", 5);
    CHECK(portreeve_unsubscribe(pair.session, &error) == 0);
    reply_golden(pair.broker, "add-address-reply", 6); /* fewer results than addresses */
    CHECK(portreeve_add_addresses(pair.session, THREE, 3, NULL, one, 1, &found, &error) == -EPROTO && found == 0);
    disconnect(pair);
}

static void text_of_the_broker_controls_no_terminal(void) {
    static const char TEXT[] = "a\x1b[2J\n\xc2\x85\xe2\x80\xae\xc3\xa9\xf0\x9f\x93\xac";
    static const char *const INVALID[] = {"\xff", "\xc3", "\xc0\xaf", "\xed\xa0\x80", "\xf4\x90\x80\x80", "\xe2\x80"};
    unsigned char buffer[64];
    char text[32], small[4];
    size_t i;

    for (i = 0; i < 1 + sizeof INVALID / sizeof INVALID[0]; i++) {
        const char *from_text = i == 0 ? TEXT : INVALID[i - 1];
        struct writer to = {buffer, sizeof buffer, false};
        struct reader from = {buffer, 0, false};

        put_text(&to, from_text, strlen(from_text));
        from.left = sizeof buffer - to.left;
        get_text(&from, text, sizeof text);
        CHECK(is_decoded(&from) == (i == 0));
        if (i == 0) {
            struct reader again = {buffer, sizeof buffer - to.left, false};

            CHECK(strcmp(text, "a?[2J???\xc3\xa9\xf0\x9f\x93\xac") == 0);
            get_text(&again, small, sizeof small);
            CHECK(again.bad && small[0] == '\0');
        }
    }
}

/* ---- Order and time ---- */

static void events_before_a_reply_are_queued(void) {
    struct pair pair = connected(5);
    struct portreeve_event event;

    running = "events";
    reply_golden(pair.broker, "event", 0);
    reply_golden(pair.broker, "event-gap", 0);
    reply_golden(pair.broker, "ping-reply", 5);
    reply_golden(pair.broker, "event", 0);
    CHECK(portreeve_ping(pair.session, &error) == 0);
    CHECK(portreeve_next_event(pair.session, &event, 0, &error) == 1 && event.number == 300);
    CHECK(portreeve_next_event(pair.session, &event, 0, &error) == 1 && event.code == PORTREEVE_GAP && event.count == 7);
    CHECK(portreeve_next_event(pair.session, &event, 0, &error) == 1 && event.number == 300);
    CHECK(portreeve_next_event(pair.session, &event, 0, &error) == 0);
    CHECK(portreeve_next_event(pair.session, &event, 20, &error) == 0);
    close(pair.broker);
    pair.broker = -1;
    CHECK(portreeve_next_event(pair.session, &event, -1, &error) == -ECONNRESET && error.ended);
    CHECK(portreeve_ping(pair.session, &error) == -ECONNRESET && error.ended);
    disconnect(pair);
}

/* Starts a process that acts as the broker. */
static pid_t act(struct pair pair, void (*broker)(int)) {
    pid_t child = fork();

    CHECK(child >= 0);
    if (child == 0) {
        close(portreeve_channel(pair.session));
        broker(pair.broker);
        _exit(0);
    }
    return child;
}

static void await(pid_t child) {
    int status = -1;

    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

static void send_many_events(int broker) {
    int i;

    for (i = 0; i < 100; i++)
        reply_golden(broker, "event", 0);
    reply_golden(broker, "ping-reply", 1);
    for (i = 0; i < 3; i++)
        reply_golden(broker, "event", 0);
}

static void events_beyond_the_queue_become_a_gap(void) {
    struct pair pair = connected(1);
    pid_t child = act(pair, send_many_events);
    struct portreeve_event event;
    int i;

    running = "many events";
    CHECK(portreeve_ping(pair.session, &error) == 0);
    for (i = 0; i < QUEUE_LENGTH; i++)
        CHECK(portreeve_next_event(pair.session, &event, PATIENCE, &error) == 1 && event.number == 300);
    CHECK(portreeve_next_event(pair.session, &event, PATIENCE, &error) == 1 && event.code == PORTREEVE_GAP);
    CHECK(event.count == 100 - QUEUE_LENGTH);
    for (i = 0; i < 3; i++)
        CHECK(portreeve_next_event(pair.session, &event, PATIENCE, &error) == 1 && event.number == 300);
    await(child);
    disconnect(pair);
}

static void a_late_reply_is_discarded_with_its_sockets(void) {
    int before = next_descriptor(), socket_of_reply, free_one;
    struct pair pair = connected(1);
    unsigned i;

    running = "late replies";
    portreeve_set_timeout(pair.session, 20);
    CHECK(portreeve_listen(pair.session, "*:25", NULL, NULL, &error) == -ETIMEDOUT && !error.ended);
    CHECK(portreeve_ping(pair.session, &error) == -ETIMEDOUT);
    portreeve_set_timeout(pair.session, PATIENCE);
    reply_golden(pair.broker, "listen-reply", 1);
    reply_golden(pair.broker, "listen-reply", 3);
    free_one = next_descriptor();
    socket_of_reply = portreeve_listen(pair.session, "*:25", NULL, NULL, &error);
    CHECK(socket_of_reply == free_one); /* that of the late reply is closed */
    close(socket_of_reply);
    reply_golden(pair.broker, "ping-reply", 2);
    reply_golden(pair.broker, "ping-reply", 4);
    CHECK(portreeve_ping(pair.session, &error) == 0);
    reply_golden(pair.broker, "ping-reply", 2); /* a second time */
    CHECK(portreeve_ping(pair.session, &error) == -EPROTO && error.ended);
    disconnect(pair);

    pair = connected(UINT32_MAX - 1);
    portreeve_set_timeout(pair.session, 0);
    for (i = 0; i < 2; i++)
        CHECK(portreeve_ping(pair.session, &error) == -ETIMEDOUT);
    CHECK(portreeve_ping(pair.session, &error) == -EBUSY); /* request numbers start again only without open requests */
    disconnect(pair);
    pair = connected(UINT32_MAX);
    for (i = 0; i < 2; i++) {
        reply_golden(pair.broker, "ping-reply", i == 0 ? UINT32_MAX : 1);
        CHECK(portreeve_ping(pair.session, &error) == 0);
    }
    disconnect(pair);
    CHECK(next_descriptor() == before);
}

static void a_broker_that_does_not_read_costs_the_time_limit(void) {
    struct pair pair = connected(1);
    int64_t begin = now_ms();
    int i, result = 0;

    running = "an unread channel";
    portreeve_set_timeout(pair.session, 5);
    for (i = 0; i < 1000 && result != -EBUSY; i++) {
        result = portreeve_ping(pair.session, &error);
        CHECK((result == -ETIMEDOUT || result == -EBUSY) && !error.ended);
        /* The last ones cannot be sent; they do not count as unanswered. */
        if (i > 300)
            break;
    }
    CHECK(now_ms() - begin < 60000);
    disconnect(pair);
}

static void flood_with_frames(int broker) {
    int64_t end = now_ms() + 1500;

    while (now_ms() < end)
        reply_golden(broker, "event", 0);
}

static void a_flood_of_events_does_not_extend_the_time_limit(void) {
    struct pair pair;
    pid_t child;
    int64_t begin;
    int full;

    running = "a flood";
    for (full = 0; full < 2; full++) {
        pair = connected(1);
        while (full && send(portreeve_channel(pair.session), "x", 1, MSG_DONTWAIT) == 1)
            ;
        child = act(pair, flood_with_frames);
        portreeve_set_timeout(pair.session, 100);
        begin = now_ms();
        CHECK(portreeve_ping(pair.session, &error) == -ETIMEDOUT && !error.ended);
        CHECK(now_ms() - begin >= 100);
        CHECK(kill(child, SIGKILL) == 0 && waitpid(child, NULL, 0) == child);
        disconnect(pair);
    }
}

static void answer_a_ping_late(int broker) {
    unsigned char request[64];

    CHECK(recv(broker, request, sizeof request, 0) == HEADER_SIZE);
    usleep(100000);
    reply_golden(broker, "ping-reply", request_of(request));
}

static volatile sig_atomic_t signals;

static void count_signal(int number) {
    (void)number;
    signals++;
}

static void signals_do_not_end_a_wait(void) {
    struct pair pair = connected(1);
    struct itimerval often = {{0, 1000}, {0, 1000}}, never = {{0, 0}, {0, 0}};
    struct sigaction action;
    pid_t child = act(pair, answer_a_ping_late);

    running = "signals";
    memset(&action, 0, sizeof action);
    action.sa_handler = count_signal; /* without SA_RESTART */
    CHECK(sigaction(SIGALRM, &action, NULL) == 0);
    CHECK(setitimer(ITIMER_REAL, &often, NULL) == 0);
    CHECK(portreeve_ping(pair.session, &error) == 0);
    CHECK(setitimer(ITIMER_REAL, &never, NULL) == 0);
    CHECK(signals > 10);
    await(child);
    disconnect(pair);
}

static void the_last_fault_is_reported_after_a_failed_send(void) {
    struct pair pair = connected(1);
    struct portreeve_event event;

    running = "the last fault";
    reply_golden(pair.broker, "fault-malformed", 0);
    close(pair.broker);
    pair.broker = -1;
    CHECK(portreeve_ping(pair.session, &error) == -EBADMSG && error.ended && error.fault == PORTREEVE_MALFORMED);
    CHECK(portreeve_next_event(pair.session, &event, -1, &error) == -EBADMSG && error.ended);
    disconnect(pair);

    pair = connected(1); /* with a request that the broker has not read: ECONNRESET before the fault */
    portreeve_set_timeout(pair.session, 0);
    CHECK(portreeve_ping(pair.session, &error) == -ETIMEDOUT);
    reply_golden(pair.broker, "fault-malformed", 0);
    close(pair.broker);
    pair.broker = -1;
    CHECK(portreeve_next_event(pair.session, &event, -1, &error) == -EBADMSG && error.ended);
    disconnect(pair);
}

static void without_free_descriptors_the_session_continues(void) {
    struct pair pair = connected(2);
    struct rlimit before, few;

    running = "no free descriptors";
    reply_golden(pair.broker, "listen-reply", 2);
    reply_golden(pair.broker, "listen-many-reply", 3);
    reply_golden(pair.broker, "ping-reply", 4);
    CHECK(getrlimit(RLIMIT_NOFILE, &before) == 0);
    few = before;
    few.rlim_cur = (rlim_t)next_descriptor();
    CHECK(setrlimit(RLIMIT_NOFILE, &few) == 0);
    CHECK(perform("listen", pair.session) == -EMFILE && !error.ended);
    CHECK(perform("listen-many", pair.session) == -EMFILE && listeners[1].error.fault == PORTREEVE_NOT_LOCAL);
    CHECK(portreeve_ping(pair.session, &error) == 0);
    CHECK(setrlimit(RLIMIT_NOFILE, &before) == 0);
    disconnect(pair);
}

static void a_child_process_cannot_use_the_session(void) {
    struct pair pair = connected(1);
    struct portreeve_event event;
    pid_t child = fork();

    running = "fork";
    CHECK(child >= 0);
    if (child == 0) {
        CHECK(portreeve_ping(pair.session, &error) == -ECHILD);
        CHECK(portreeve_listen(pair.session, "*:25", NULL, NULL, &error) == -ECHILD);
        CHECK(portreeve_next_event(pair.session, &event, 0, &error) == -ECHILD);
        portreeve_close(pair.session);
        _exit(0);
    }
    await(child);
    reply_golden(pair.broker, "ping-reply", 1);
    CHECK(portreeve_ping(pair.session, &error) == 0); /* the child's close did not end it */
    disconnect(pair);
}

/* ---- Arguments and the environment ---- */

static void endpoints_have_the_notation_of_the_configuration(void) {
    static const struct {
        const char *text, *same;
    } VALID[] = {
        {":25", "*:25"},
        {"0.0.0.0:25", "*:25"},
        {"192.0.2.1:25/tcp", "192.0.2.1:25"},
        {"[*]:25", "[::]:25"},
        {"*:53/udp", "0.0.0.0:53/udp"},
        {"[2001:0db8::1]:65535", "[2001:db8::1]:65535"},
    };
    static const char *const INVALID[] = {
        "",         "25",          "192.0.2.1",   "70000",    "*:0",           "*:+25",          "*:65536", "::1:25",
        "[192.0.2.1]:25", "mx1:25", "[fe80::1%]:25", "*:25/sctp", "*:25/", "[::ffff:192.0.2.1]:25", "[::1:25", "*:25 ",
        "[fe80::1%eth0eth0eth0eth0]:25", "1.2.3:25", "*:2:5", "seqpacket:\xff",
    };
    unsigned char one[128], two[128];
    char path[200];
    size_t i;

    for (i = 0; i < sizeof VALID / sizeof VALID[0]; i++) {
        struct writer to = {one, sizeof one, false}, same = {two, sizeof two, false};

        running = VALID[i].text;
        CHECK(put_endpoint(&to, VALID[i].text, &error) == 0 && put_endpoint(&same, VALID[i].same, &error) == 0);
        CHECK(to.left == same.left && memcmp(one, two, sizeof one - to.left) == 0);
    }
    for (i = 0; i < sizeof INVALID / sizeof INVALID[0]; i++) {
        struct writer to = {one, sizeof one, false};

        running = INVALID[i];
        CHECK(put_endpoint(&to, INVALID[i], &error) < 0 && error.message[0] != '\0');
    }
    memset(path, '/', sizeof path);
    for (i = 106; i < 110; i++) {
        struct writer to = {one, sizeof one, false};

        path[i] = '\0';
        CHECK(put_endpoint(&to, path, &error) == (i <= MAX_PATH_LENGTH ? 0 : -ENAMETOOLONG));
        path[i] = '/';
    }
}

static void a_wrong_argument_sends_nothing(void) {
    static const struct portreeve_lease_options BOTH = {3, 10, 10, 0, 0, false}, PROBES = {0, 0, 0, 0, 4, false};
    const struct portreeve_listen_options device = {.device = "an interface"};
    static struct portreeve_listen_request requests[PORTREEVE_MAX_LISTENERS + 1];
    static struct portreeve_listener results[PORTREEVE_MAX_LISTENERS + 1];
    static uint64_t ids[PORTREEVE_MAX_LISTENERS + 1];
    const char *many[PORTREEVE_MAX_ADDRESSES + 1], *bad[] = {"192.0.2.1", "mx1"};
    struct pair pair = connected(1);
    struct portreeve *session = pair.session;
    char long_name[70];
    size_t i;

    running = "arguments";
    for (i = 0; i <= PORTREEVE_MAX_ADDRESSES; i++)
        many[i] = "192.0.2.1";
    for (i = 0; i <= PORTREEVE_MAX_LISTENERS; i++)
        requests[i].endpoint = "*:25";
    memset(long_name, 'a', sizeof long_name);
    long_name[65] = '\0';
    CHECK(portreeve_open(&session, 0, long_name, 0, &error) == -ENAMETOOLONG && session == NULL);
    CHECK(portreeve_open(&session, 0, "\xff", 0, &error) == -EILSEQ && session == NULL);
    CHECK(portreeve_open(&session, 0, NULL, 0, &error) == -EINVAL);
    CHECK(portreeve_connect(&session, "/nonexistent/broker.sock", "test", 0, &error) == -ENOENT);
    CHECK(strstr(error.message, "/nonexistent/broker.sock") != NULL && strstr(error.remedy, "portreeved") != NULL);
    session = pair.session;
    CHECK(portreeve_ping(NULL, &error) == -EINVAL);
    CHECK(portreeve_listen(session, NULL, NULL, NULL, &error) == -EINVAL);
    CHECK(portreeve_listen(session, "*:25", &device, NULL, NULL) == -EINVAL);
    CHECK(portreeve_listen_many(session, requests, PORTREEVE_MAX_LISTENERS + 1, false, results, &error) == -E2BIG);
    CHECK(results[0].socket == -1 && results[PORTREEVE_MAX_LISTENERS].error.number == E2BIG);
    CHECK(portreeve_stop(session, ids, PORTREEVE_MAX_LISTENERS + 1, NULL, &error) == -E2BIG);
    CHECK(portreeve_add_addresses(session, many, PORTREEVE_MAX_ADDRESSES + 1, NULL, NULL, 0, &found, &error) == -E2BIG);
    CHECK(portreeve_add_addresses(session, bad, 2, NULL, NULL, 0, &found, &error) == -EINVAL);
    CHECK(portreeve_add_addresses(session, bad, 1, &BOTH, NULL, 0, &found, &error) == -EINVAL);
    CHECK(portreeve_add_addresses(session, bad, 1, &PROBES, NULL, 0, &found, &error) == -EINVAL);
    CHECK(portreeve_move_addresses(session, bad, 1, "", 0, false, NULL, 0, &found, &error) == -EINVAL);
    CHECK(portreeve_list_addresses(session, NULL, rows, 0, &found, &more, &error) == -EINVAL);
    CHECK(recv(pair.broker, long_name, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    disconnect(pair);
}

/* The longest requests fit in a frame. */
static void the_longest_requests_fit(void) {
    static struct portreeve_listen_request requests[PORTREEVE_MAX_LISTENERS];
    static struct portreeve_listener results[PORTREEVE_MAX_LISTENERS];
    static char path[MAX_PATH_LENGTH + sizeof "seqpacket:"];
    static unsigned char request[MAX_FRAME];
    struct portreeve_listen_options options = EVERY_OPTION;
    struct pair pair = connected(1);
    size_t i;

    running = "long requests";
    memset(path, '/', sizeof path - 1);
    memcpy(path, "seqpacket:", 10);
    options.device = "fifteen-letters";
    for (i = 0; i < PORTREEVE_MAX_LISTENERS; i++) {
        requests[i].endpoint = path;
        requests[i].options = &options;
    }
    portreeve_set_timeout(pair.session, 0);
    CHECK(portreeve_listen_many(pair.session, requests, PORTREEVE_MAX_LISTENERS, false, results, &error) == -ETIMEDOUT);
    CHECK(receive_request(pair.broker, request, sizeof request) > 40000);
    disconnect(pair);
}

static void an_inherited_channel_is_checked(void) {
    static const char *const INVALID[] = {"", "-1", "3x", "99999999999", "+3", " 3"};
    struct portreeve *session, *second;
    int ends[2], plain, before = next_descriptor();
    char number[16];
    size_t i;

    running = "the inherited channel";
    CHECK(unsetenv("PORTREEVE_CHANNEL") == 0);
    CHECK(portreeve_inherit(&session, "test", 0, &error) == -ENOENT && session == NULL);
    for (i = 0; i < sizeof INVALID / sizeof INVALID[0]; i++) {
        CHECK(setenv("PORTREEVE_CHANNEL", INVALID[i], 1) == 0);
        CHECK(portreeve_inherit(&session, "test", 0, &error) == -EINVAL);
    }
    CHECK(setenv("PORTREEVE_CHANNEL", "1000", 1) == 0);
    CHECK(portreeve_inherit(&session, "test", 0, &error) == -EBADF);
    CHECK((plain = open("/dev/null", O_RDONLY)) >= 0);
    snprintf(number, sizeof number, "%d", plain);
    CHECK(setenv("PORTREEVE_CHANNEL", number, 1) == 0);
    CHECK(portreeve_inherit(&session, "test", 0, &error) == -ENOTSOCK);
    close(plain);
    CHECK(socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) == 0);
    snprintf(number, sizeof number, "%d", ends[0]);
    CHECK(setenv("PORTREEVE_CHANNEL", number, 1) == 0);
    reply_golden(ends[1], "hello-reply", 1);
    CHECK(portreeve_inherit(&session, "test", PATIENCE, &error) == 0 && portreeve_channel(session) == ends[0]);
    CHECK((fcntl(ends[0], F_GETFD) & FD_CLOEXEC) != 0);
    CHECK((fcntl(ends[0], F_GETFL) & O_NONBLOCK) == 0); /* it is shared with the process that passed it */
    CHECK(portreeve_inherit(&second, "test", 0, &error) == -EBADF && second == NULL);
    portreeve_close(session);
    close(ends[1]);
    CHECK(next_descriptor() == before);
}

static void set_listen(const char *pid, const char *count, const char *names) {
    CHECK(setenv("LISTEN_PID", pid, 1) == 0 && setenv("LISTEN_FDS", count, 1) == 0);
    CHECK(names == NULL ? unsetenv("LISTEN_FDNAMES") == 0 : setenv("LISTEN_FDNAMES", names, 1) == 0);
}

static void inherited_listeners_are_taken_by_name(void) {
    struct portreeve_inherited_listener taken[4];
    char self[16];
    int i, copies[3];

    running = "LISTEN_FDS";
    snprintf(self, sizeof self, "%ld", (long)getpid());
    CHECK(portreeve_inherited_listeners(taken, 4, &found, &error) == 0 && found == 0);
    set_listen("1", "3", NULL);
    CHECK(portreeve_inherited_listeners(taken, 4, &found, &error) == 0 && found == 0);
    set_listen(self, "x", NULL);
    CHECK(portreeve_inherited_listeners(taken, 4, &found, &error) == -EINVAL);
    set_listen(self, "5", NULL);
    CHECK(portreeve_inherited_listeners(taken, 4, &found, &error) == -E2BIG);
    for (i = 0; i < 3; i++)
        CHECK((copies[i] = open("/dev/null", O_RDONLY)) == 3 + i);
    set_listen(self, "4", NULL);
    CHECK(portreeve_inherited_listeners(taken, 4, &found, &error) == -EBADF && found == 0);
    set_listen(self, "3", "smtp::submission");
    CHECK(portreeve_inherited_listeners(taken, 4, &found, &error) == 0 && found == 3);
    CHECK(strcmp(taken[0].name, "smtp") == 0 && strcmp(taken[1].name, "unknown") == 0);
    CHECK(strcmp(taken[2].name, "submission") == 0);
    for (i = 0; i < 3; i++) {
        CHECK(taken[i].socket == 3 + i && (fcntl(3 + i, F_GETFD) & FD_CLOEXEC) != 0);
        close(copies[i]);
    }
}

int main(int argc, char **argv) {
    CHECK(argc == 2);
    read_golden(argv[1]);
    CHECK(next_descriptor() == 3); /* the caller has left no descriptor open */
    every_request_and_reply_is_golden();
    every_decoded_field_has_its_value();
    no_truncated_reply_is_accepted();
    a_changed_reply_breaks_nothing();
    a_reply_with_other_descriptors_ends_the_session();
    every_value_has_one_encoding();
    decoders_read_no_byte_after_the_body();
    results_beyond_the_room_are_only_counted();
    text_of_the_broker_controls_no_terminal();
    events_before_a_reply_are_queued();
    events_beyond_the_queue_become_a_gap();
    a_late_reply_is_discarded_with_its_sockets();
    a_broker_that_does_not_read_costs_the_time_limit();
    a_flood_of_events_does_not_extend_the_time_limit();
    signals_do_not_end_a_wait();
    the_last_fault_is_reported_after_a_failed_send();
    without_free_descriptors_the_session_continues();
    a_child_process_cannot_use_the_session();
    endpoints_have_the_notation_of_the_configuration();
    a_wrong_argument_sends_nothing();
    the_longest_requests_fit();
    an_inherited_channel_is_checked();
    inherited_listeners_are_taken_by_name();
    puts("all tests passed");
    return 0;
}
