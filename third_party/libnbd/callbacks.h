#ifndef SENDENSE_LIBNBD_CALLBACKS_H
#define SENDENSE_LIBNBD_CALLBACKS_H

#include <stdint.h>
#include <libnbd.h>

/* Each takes a runtime/cgo.Handle of the Go function to be called; the library
 * releases it when the function will not be called again.
 */
nbd_completion_callback golibnbd_completion (uintptr_t fn);
nbd_extent_callback golibnbd_extent (uintptr_t fn);
nbd_list_callback golibnbd_list (uintptr_t fn);
nbd_context_callback golibnbd_context (uintptr_t fn);

#endif
