# pyreplica: trigger-based replication inside PostgreSQL
#
#   make && make install          builds and installs the extension
#   make installcheck             runs the tests (one: PROVE_TESTS=t/001_basic.pl)
#
# Two loadable modules come out of this.  pyreplica is the extension itself.
# pyreplica_libpq is the only thing linked against libpq; the slave's worker
# loads it when it first connects, so that neither the postmaster nor ordinary
# backends ever map libpq.

PG_CONFIG ?= pg_config
EXTVERSION = $(shell sed -n "s/^default_version *= *'\(.*\)'/\1/p" pyreplica.control)

EXTENSION = pyreplica
MODULE_big = pyreplica
OBJS = \
	src/pyreplica.o \
	src/common/config.o \
	src/common/replicas.o \
	src/common/decode.o \
	src/common/arrays.o \
	src/common/values.o \
	src/common/textform.o \
	src/common/encoding.o \
	src/common/wal.o \
	src/common/keys.o \
	src/common/node.o \
	src/common/render.o \
	src/master/filter.o \
	src/master/relinfo.o \
	src/master/txbuffer.o \
	src/master/capture.o \
	src/master/log.o \
	src/master/sql.o \
	src/master/sequence.o \
	src/master/place.o \
	src/master/writer.o \
	src/master/reader.o \
	src/master/cleaner.o \
	src/slave/status.o \
	src/slave/launcher.o \
	src/slave/worker.o \
	src/slave/origin.o \
	src/slave/fetch.o \
	src/slave/tables.o \
	src/slave/mapping.o \
	src/slave/layout.o \
	src/slave/collision.o \
	src/slave/mend.o \
	src/slave/copy.o \
	src/slave/child.o \
	src/slave/dump.o \
	src/slave/schema.o \
	src/slave/copyworker.o \
	src/slave/verify.o \
	src/slave/sequences.o \
	src/slave/merge.o \
	src/slave/target.o \
	src/slave/foreign.o \
	src/slave/statement.o \
	src/slave/sets.o \
	src/slave/author.o \
	src/slave/policy.o \
	src/slave/look.o \
	src/slave/conflict.o \
	src/slave/history.o \
	src/slave/skip.o \
	src/slave/ddl.o \
	src/slave/apply.o \
	src/slave/position.o \
	src/slave/local.o

MODULES = src/remote/pyreplica_libpq

DATA_built = sql/pyreplica--$(EXTVERSION).sql

TAP_TESTS = 1
PROVE_FLAGS += -I t/lib

# Warnings are for our own code: the server's headers are system headers here.
PG_CPPFLAGS = -I$(CURDIR)/src -isystem $(shell $(PG_CONFIG) --includedir-server) \
	-I$(libpq_srcdir)
PG_CFLAGS = -Wextra -Wno-declaration-after-statement $(PROFILE)

EXTRA_CLEAN = sql/pyreplica--$(EXTVERSION).sql src/*/*.bc src/*.bc

PGXS := $(shell $(PG_CONFIG) --pgxs)
include $(PGXS)

# PGXS links a module of MODULES without SHLIB_LINK; this one needs libpq.
src/remote/pyreplica_libpq$(DLSUFFIX): LDFLAGS_SL += $(libpq)

sql/pyreplica--$(EXTVERSION).sql: sql/pyreplica.sql
	cp $< $@

# Objects depend on every header: there are few, and a stale one costs hours.
HEADERS = $(wildcard src/*.h src/*/*.h)
$(OBJS) $(addsuffix .o,$(MODULES)): $(HEADERS)
