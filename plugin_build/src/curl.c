/*
 * libcurl for this plugin alone. uWSGI loads plugins so that their names, and those of all
 * libraries that they are linked with, are everybody's: an application's own libcurl or OpenSSL,
 * as Python's binary wheels bring them, would then call into the system's. So the plugin is not
 * linked with libcurl but loads it for itself, and what http.c calls is passed on here.
 */
#pragma GCC visibility push(hidden)
#include <curl/curl.h>
#pragma GCC visibility pop

#include "http.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <string.h>

/* As the functions are called with the types of their parameters, not those of curl's macros. */
#undef curl_easy_setopt
#undef curl_easy_getinfo
#undef curl_multi_setopt

/* Debian's three builds of it differ in the TLS library, not in what is used here. */
static const char *const files[] = {"libcurl.so.4", "libcurl-gnutls.so.4", "libcurl-nss.so.4"};

#define EACH_FUNCTION(DO)                                                                          \
    DO(CURLcode, global_init, (long))                                                              \
    DO(CURL *, easy_init, (void))                                                                  \
    DO(void, easy_cleanup, (CURL *))                                                               \
    DO(void, easy_reset, (CURL *))                                                                 \
    DO(const char *, easy_strerror, (CURLcode))                                                    \
    DO(CURLcode, easy_setopt, (CURL *, CURLoption, ...))                                           \
    DO(CURLcode, easy_getinfo, (CURL *, CURLINFO, ...))                                            \
    DO(struct curl_slist *, slist_append, (struct curl_slist *, const char *))                     \
    DO(void, slist_free_all, (struct curl_slist *))                                                \
    DO(CURLM *, multi_init, (void))                                                                \
    DO(CURLMcode, multi_setopt, (CURLM *, CURLMoption, ...))                                       \
    DO(CURLMcode, multi_add_handle, (CURLM *, CURL *))                                             \
    DO(CURLMcode, multi_remove_handle, (CURLM *, CURL *))                                          \
    DO(CURLMcode, multi_perform, (CURLM *, int *))                                                 \
    DO(CURLMcode, multi_wait, (CURLM *, struct curl_waitfd *, unsigned, int, int *))               \
    DO(CURLMsg *, multi_info_read, (CURLM *, int *))                                               \
    DO(CURLMcode, multi_cleanup, (CURLM *))

#define MEMBER(type, name, parameters) type(*name) parameters;
static struct { EACH_FUNCTION(MEMBER) } loaded;

#define NAME(type, name, parameters) "curl_" #name,
static const char *const names[] = {EACH_FUNCTION(NAME)};

const char *consul_curl_load(void) {
    void *functions[sizeof(names) / sizeof(names[0])];
    void *library = NULL;
    size_t i;
    _Static_assert(sizeof(functions) == sizeof(loaded), "a pointer for each function");
    if (loaded.global_init)
        return NULL;
    for (i = 0; !library && i < sizeof(files) / sizeof(files[0]); i++)
        library = dlopen(files[i], RTLD_NOW | RTLD_LOCAL);
    if (!library)
        return "libcurl is not installed (libcurl.so.4): install it, the package is libcurl4";
    for (i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        functions[i] = dlsym(library, names[i]);
        if (!functions[i])
            return "libcurl is too old: 7.28 or later is required";
    }
    memcpy(&loaded, functions, sizeof(loaded));
    if (!loaded.global_init(CURL_GLOBAL_ALL))
        return NULL;
    memset(&loaded, 0, sizeof(loaded));
    return "can't initialise libcurl";
}

CURL *curl_easy_init(void) {
    return loaded.easy_init();
}

void curl_easy_cleanup(CURL *curl) {
    loaded.easy_cleanup(curl);
}

void curl_easy_reset(CURL *curl) {
    loaded.easy_reset(curl);
}

const char *curl_easy_strerror(CURLcode code) {
    return loaded.easy_strerror(code);
}

/* An option's number tells the type of its value. */
CURLcode curl_easy_setopt(CURL *curl, CURLoption option, ...) {
    CURLcode code;
    va_list values;
    va_start(values, option);
    if (option < CURLOPTTYPE_OBJECTPOINT)
        code = loaded.easy_setopt(curl, option, va_arg(values, long));
    else
        code = loaded.easy_setopt(curl, option, va_arg(values, void *));
    va_end(values);
    return code;
}

CURLcode curl_easy_getinfo(CURL *curl, CURLINFO info, ...) {
    CURLcode code;
    va_list values;
    va_start(values, info);
    code = loaded.easy_getinfo(curl, info, va_arg(values, void *));
    va_end(values);
    return code;
}

struct curl_slist *curl_slist_append(struct curl_slist *list, const char *line) {
    return loaded.slist_append(list, line);
}

void curl_slist_free_all(struct curl_slist *list) {
    loaded.slist_free_all(list);
}

CURLM *curl_multi_init(void) {
    return loaded.multi_init();
}

CURLMcode curl_multi_setopt(CURLM *multi, CURLMoption option, ...) {
    CURLMcode code;
    va_list values;
    va_start(values, option);
    if ((int)option < CURLOPTTYPE_OBJECTPOINT)
        code = loaded.multi_setopt(multi, option, va_arg(values, long));
    else
        code = loaded.multi_setopt(multi, option, va_arg(values, void *));
    va_end(values);
    return code;
}

CURLMcode curl_multi_add_handle(CURLM *multi, CURL *curl) {
    return loaded.multi_add_handle(multi, curl);
}

CURLMcode curl_multi_remove_handle(CURLM *multi, CURL *curl) {
    return loaded.multi_remove_handle(multi, curl);
}

CURLMcode curl_multi_perform(CURLM *multi, int *running) {
    return loaded.multi_perform(multi, running);
}

CURLMcode curl_multi_wait(CURLM *multi, struct curl_waitfd *extra, unsigned count, int timeout,
                          int *found) {
    return loaded.multi_wait(multi, extra, count, timeout, found);
}

CURLMsg *curl_multi_info_read(CURLM *multi, int *left) {
    return loaded.multi_info_read(multi, left);
}

CURLMcode curl_multi_cleanup(CURLM *multi) {
    return loaded.multi_cleanup(multi);
}
