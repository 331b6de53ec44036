/*-------------------------------------------------------------------------
 *
 * replicas.c
 *	  Which replicas there are, by the settings: the list pyreplica.replicas,
 *	  and a set of settings pyreplica_<name>.* for each.
 *
 * Until somebody defines it, a setting with a prefix is a placeholder, that
 * everybody may SHOW, and whose new value the server writes to its log.  So the
 * settings of a replica have to be defined, in every process, before the server
 * gives them their values; those too of a name that is not on the list (yet, or
 * any more), or whose place in the configuration files is before the list's.
 *
 * When the library is loaded with the server (every other process inherits what
 * is defined then), and before each reload, we therefore read the files for
 * such names ourselves.  The server has no hook at the beginning of a reload,
 * but before it gives settings their new values it takes back what the files do
 * not mention any more.  There is a setting that no file mentions, but that
 * claims to come from one: its check hook is called then.  It claims so again
 * at once, for the next time; and as a value of the session takes precedence,
 * the server has nothing to report.
 *
 * At that time the server is walking through its list of settings.  It can be
 * added to: what was there is still visited, some of it perhaps twice, which
 * does no harm.
 *
 *-------------------------------------------------------------------------
 */
#include "postgres.h"

#include "access/parallel.h"
#include "common/compat.h"
#include "common/config.h"
#include "common/replicas.h"
#include "miscadmin.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/varlena.h"

#define FAMILY_PREFIX	"pyreplica_"
#define WATCH			"pyreplica.reload_watch"

/* "pyreplica <name>" is to fit into application_name */
#define REPLICA_NAME_MAX	(NAMEDATALEN - 1 - (int) strlen("pyreplica "))

/* the settings pyreplica_<name>.* */
typedef struct Family
{
	struct Family *next;
	PyrConfig  *config;
	bool		is_in_file;		/* when they were last read */
	char		name[FLEXIBLE_ARRAY_MEMBER];
} Family;

static Family *families = NULL;

/* pyreplica.replicas: the replicas that have a name. */
static char *replicas = NULL;

static bool reload_watch = false;
static bool is_watching = false;

/*
 * Makes the settings known, if they are not yet.
 */
static Family *
define_family(const char *name)
{
	Family	   *family;
	char	   *prefix;

	for (family = families; family != NULL; family = family->next)
	{
		if (strcmp(family->name, name) == 0)
			return family;
	}
	family = MemoryContextAllocZero(TopMemoryContext,
									offsetof(Family, name) + strlen(name) + 1);
	strcpy(family->name, name);
	family->next = families;
	families = family;
	family->config = pyr_config_create(name);

	/* what is misspelt under it is an error from now on */
	prefix = psprintf(FAMILY_PREFIX "%s", name);
	MarkGUCPrefixReserved(prefix);
	pfree(prefix);
	return family;
}

/*
 * The replica whose setting that is, in the file's spelling; NULL: it is
 * another setting.
 */
static char *
family_of(const char *setting)
{
	size_t		prefix_len = strlen(FAMILY_PREFIX);
	const char *dot = strchr(setting, '.');
	char	   *name;

	if (pg_strncasecmp(setting, FAMILY_PREFIX, prefix_len) != 0 ||
		dot == NULL || dot == setting + prefix_len)
		return NULL;
	name = pnstrdup(setting + prefix_len, dot - setting - prefix_len);
	for (char *p = name; *p != '\0'; p++)
		*p = pg_ascii_tolower((unsigned char) *p);
	return name;
}

/*
 * Defines the settings that a file (and those that it includes) is about to
 * give values to.  Errors in it are the server's business.
 */
static void
define_families_of_file(const char *file)
{
	ConfigVariable *head = NULL;
	ConfigVariable *tail = NULL;

	(void) ParseConfigFile(file, true, NULL, 0, 0, DEBUG5, &head, &tail);
	for (ConfigVariable *item = head; item != NULL; item = item->next)
	{
		char	   *name = item->name != NULL ? family_of(item->name) : NULL;

		if (name != NULL)
			define_family(name)->is_in_file = true;
	}
	FreeConfigVariables(head);
}

static void
define_families_of_files(void)
{
	for (Family *family = families; family != NULL; family = family->next)
		family->is_in_file = false;
	if (ConfigFileName != NULL)
		define_families_of_file(ConfigFileName);
	define_families_of_file(PG_AUTOCONF_FILENAME);
}

/*
 * To be called before the next reload: see above.
 */
static void
set_watch(void)
{
	SetConfigOption(WATCH, "on", PGC_SIGHUP, PGC_S_FILE);
}

static bool
check_reload_watch(bool *newval pg_attribute_unused(),
				   void **extra pg_attribute_unused(), GucSource source)
{
	/* a parallel worker, which never reloads, resets all settings first */
	if (is_watching && source == PGC_S_DEFAULT && !IsParallelWorker())
	{
		define_families_of_files();
		set_watch();
	}
	return true;
}

/*
 * The names on the list, palloc'd; false: it is none.
 */
static bool
split_list(const char *list, List **names)
{
	return SplitGUCList(pstrdup(list), ',', names);
}

static bool
is_valid_name(const char *name)
{
	return name[0] != '\0' && strlen(name) <= REPLICA_NAME_MAX &&
		strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789_") == strlen(name);
}

static bool
check_replicas(char **newval, void **extra pg_attribute_unused(),
			   GucSource source pg_attribute_unused())
{
	List	   *names;
	ListCell   *cell;
	ListCell   *other;

	if (!split_list(*newval, &names))
	{
		GUC_check_errdetail("It is not a list of names with commas between them.");
		return false;
	}
	foreach(cell, names)
	{
		if (!is_valid_name(lfirst(cell)))
		{
			GUC_check_errdetail("\"%s\" cannot be the name of a replica.",
								(char *) lfirst(cell));
			GUC_check_errhint("Names are made of lower-case letters, digits and underscores, %d at most.",
							  REPLICA_NAME_MAX);
			return false;
		}
		foreach(other, names)
		{
			if (other == cell)
				break;
			if (strcmp(lfirst(other), lfirst(cell)) == 0)
			{
				GUC_check_errdetail("\"%s\" is there twice.",
									(char *) lfirst(cell));
				return false;
			}
		}
	}
	list_free(names);
	return true;
}

static void
assign_replicas(const char *newval, void *extra pg_attribute_unused())
{
	List	   *names;
	ListCell   *cell;

	(void) split_list(newval, &names);
	foreach(cell, names)
		(void) define_family(lfirst(cell));
	list_free(names);
}

void
pyr_replicas_define(void)
{
	DefineCustomStringVariable("pyreplica.replicas",
							   "Names of further replicas.",
							   "Each is set by pyreplica_<name>.<setting>.",
							   &replicas,
							   "",
							   PGC_SIGHUP,
							   GUC_LIST_INPUT,
							   check_replicas, assign_replicas, NULL);

	DefineCustomBoolVariable(WATCH,
							 "Tells when settings are about to be reloaded.",
							 "Not to be set.",
							 &reload_watch,
							 false,
							 PGC_SIGHUP,
							 GUC_NO_SHOW_ALL | GUC_NOT_IN_SAMPLE,
							 check_reload_watch, NULL, NULL);
}

/*
 * Called in the postmaster: from now on no setting of a replica is unknown when
 * it gets its value.
 */
void
pyr_replicas_watch(void)
{
	define_families_of_files();
	SetConfigOption(WATCH, "on", PGC_SIGHUP, PGC_S_SESSION);
	set_watch();
	is_watching = true;
}

/*
 * The names of all replicas; "" is the one without a name.
 */
List *
pyr_replicas_listed(void)
{
	List	   *names;

	(void) split_list(replicas, &names);
	if (pyr_config_has_master(NULL))
		names = lcons("", names);
	return names;
}

static bool
is_listed(const char *name)
{
	List	   *names = pyr_replicas_listed();
	ListCell   *cell;

	foreach(cell, names)
	{
		if (strcmp(lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

/*
 * The names that have settings but are no replicas.
 */
List *
pyr_replicas_unlisted(void)
{
	List	   *names = NIL;

	for (Family *family = families; family != NULL; family = family->next)
	{
		if (family->is_in_file && !is_listed(family->name))
			names = lappend(names, family->name);
	}
	return names;
}

/*
 * From now on, until settings change, the process is concerned with that
 * replica: its settings are in force.  False: there is none of that name (any
 * more).
 */
bool
pyr_replicas_use(const char *name)
{
	if (!is_listed(name))
		return false;
	pyr_config_use(name[0] != '\0' ? define_family(name)->config : NULL);
	return true;
}
