/*-------------------------------------------------------------------------
 *
 * pyreplica.h
 *	  Words that both wings of pyreplica, master and slave, share.
 *
 *-------------------------------------------------------------------------
 */
#ifndef PYREPLICA_H
#define PYREPLICA_H

#define PYR_EXTENSION		"pyreplica"

/* NOTIFY channel that wakes sleeping slaves; PyReplica's own */
#define PYR_CHANNEL			"replicas"

/*
 * Advisory locks on the master, in its database, with two int4 keys.
 *
 * (PYR_LOCK_CLASS, PYR_LOCK_SLEEP): a slave that is about to wait holds it in
 * share mode; a committing writer tries it in row-exclusive mode, see
 * master/log.c.
 *
 * (PYR_LOCK_SLAVE, hash of the replica's name): held exclusively by the one
 * connection that serves this replica, see py_log_attach in the SQL script.
 *
 * The SQL script repeats these numbers.
 *
 * On the slave, (PYR_LOCK_COPY, hash of the replica's name), of a kind that has
 * no name in SQL: held in share mode by processes that copy for the replica's
 * worker, see slave/copyworker.c.
 */
#define PYR_LOCK_CLASS		1887007333	/* 'pyre' */
#define PYR_LOCK_SLEEP		1
#define PYR_LOCK_SLAVE		1887007347	/* 'pyrs' */
#define PYR_LOCK_COPY		1887007331	/* 'pyrc' */

#endif							/* PYREPLICA_H */
