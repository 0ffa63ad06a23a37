#include "callbacks.h"
#include "_cgo_export.h"

static int
on_completion (void *fn, int *error)
{
  return golibnbdCompletion ((uintptr_t) fn, error);
}

static int
on_extent (void *fn, const char *context, uint64_t offset,
           uint32_t *entries, size_t nr_entries, int *error)
{
  return golibnbdExtent ((uintptr_t) fn, (char *) context, offset,
                         entries, nr_entries, error);
}

static int
on_list (void *fn, const char *name, const char *description)
{
  return golibnbdList ((uintptr_t) fn, (char *) name, (char *) description);
}

static int
on_context (void *fn, const char *name)
{
  return golibnbdContext ((uintptr_t) fn, (char *) name);
}

static void
release (void *fn)
{
  golibnbdRelease ((uintptr_t) fn);
}

nbd_completion_callback
golibnbd_completion (uintptr_t fn)
{
  nbd_completion_callback cb = { NULL, NULL, NULL };
  if (fn != 0)
    cb = (nbd_completion_callback) { on_completion, (void *) fn, release };
  return cb;
}

nbd_extent_callback
golibnbd_extent (uintptr_t fn)
{
  return (nbd_extent_callback) { on_extent, (void *) fn, release };
}

nbd_list_callback
golibnbd_list (uintptr_t fn)
{
  return (nbd_list_callback) { on_list, (void *) fn, release };
}

nbd_context_callback
golibnbd_context (uintptr_t fn)
{
  return (nbd_context_callback) { on_context, (void *) fn, release };
}
