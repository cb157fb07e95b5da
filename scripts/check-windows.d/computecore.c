/* A stand-in for computecore.dll: compute systems without machines. It keeps what it
 * is given, checks the order of calls, calls back as the real one does, on a thread
 * of its own, and writes each call as one line to the file that HCS_TRACE names, so
 * that a test can see what arrived. HCS_DENY makes it refuse as Windows refuses a
 * process that is not elevated. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <wchar.h>
#include <windows.h>

#define EXPORT __declspec(dllexport)
#define ACCESS_DENIED ((HRESULT)0x80070005)
#define INVALID ((HRESULT)0x80070057)
#define PENDING ((HRESULT)0xC0370103)
#define STOPPED ((HRESULT)0xC0370110)

typedef struct { DWORD type; PCWSTR data; void *operation; } Event;
typedef void(CALLBACK *Callback)(Event *, void *);

enum state { CREATED, RUNNING, PAUSED, OFF };

typedef struct {
	WCHAR id[64];
	enum state state;
	Callback callback;
	void *context;
} System;

typedef struct {
	HRESULT result;
	PCWSTR document;
} Operation;

/* Of the process, not of the C library, which has a copy from before. */
static int setting(const char *name, char *value, DWORD size) { return GetEnvironmentVariableA(name, value, size) > 0; }

static int denied(void)
{
	char value[8];
	return setting("HCS_DENY", value, sizeof value);
}

static void trace(const char *call, PCWSTR a, PCWSTR b)
{
	char path[1024];
	FILE *f = setting("HCS_TRACE", path, sizeof path) ? fopen(path, "ab") : NULL;
	if (!f)
		return;
	fprintf(f, "%s", call);
	for (int i = 0; i < 2; i++) {
		PCWSTR s = i ? b : a;
		char text[8192] = "";
		if (s)
			WideCharToMultiByte(CP_UTF8, 0, s, -1, text, sizeof text, NULL, NULL);
		fprintf(f, "\t%s", text);
	}
	fputc('\n', f);
	fclose(f);
}

static HRESULT done(Operation *op, HRESULT result, PCWSTR document)
{
	if (!op)
		return INVALID;
	op->result = result;
	op->document = document;
	return PENDING; /* as some versions of Windows answer, and others with success */
}

static PWSTR copy(PCWSTR s)
{
	size_t size = (wcslen(s) + 1) * sizeof(WCHAR);
	PWSTR p = LocalAlloc(LMEM_FIXED, size);
	memcpy(p, s, size);
	return p;
}

static PCWSTR exit_document;

static DWORD WINAPI tell(LPVOID arg)
{
	System *s = arg;
	Event e = {1, exit_document, NULL};
	Sleep(20);
	if (s->callback)
		s->callback(&e, s->context);
	return 0;
}

static void off(System *s, PCWSTR document)
{
	s->state = OFF;
	exit_document = document;
	CloseHandle(CreateThread(NULL, 0, tell, s, 0, NULL));
}

EXPORT void *WINAPI HcsCreateOperation(void *context, void *callback) { return calloc(1, sizeof(Operation)); }
EXPORT void WINAPI HcsCloseOperation(void *op) { free(op); }

EXPORT HRESULT WINAPI HcsWaitForOperationResult(Operation *op, DWORD timeout, PWSTR *document)
{
	Sleep(5);
	*document = op->document ? copy(op->document) : NULL;
	return op->result;
}

EXPORT HRESULT WINAPI HcsGetServiceProperties(PCWSTR query, PWSTR *document)
{
	trace("properties of the service", query, NULL);
	*document = copy(L"{\"Properties\":[]}");
	return denied() ? ACCESS_DENIED : S_OK;
}

EXPORT HRESULT WINAPI HcsGrantVmAccess(PCWSTR id, PCWSTR path)
{
	trace("grant", id, path);
	return GetFileAttributesW(path) == INVALID_FILE_ATTRIBUTES ? INVALID : S_OK;
}

EXPORT HRESULT WINAPI HcsRevokeVmAccess(PCWSTR id, PCWSTR path)
{
	trace("revoke", id, path);
	return S_OK;
}

EXPORT HRESULT WINAPI HcsCreateComputeSystem(PCWSTR id, PCWSTR document, Operation *op, void *sd, System **system)
{
	trace("create", id, document);
	if (denied())
		return ACCESS_DENIED;
	if (!wcsstr(document, L"\"LinuxKernelDirect\""))
		return done(op, INVALID, L"{\"Error\":-2147024809,\"ErrorMessage\":\"no kernel\"}");
	*system = calloc(1, sizeof **system);
	wcsncpy((*system)->id, id, 63);
	return done(op, S_OK, NULL);
}

EXPORT void WINAPI HcsCloseComputeSystem(System *s) { trace("close", s->id, NULL); /* its threads may still use it */ }

EXPORT HRESULT WINAPI HcsSetComputeSystemCallback(System *s, DWORD options, void *context, Callback callback)
{
	trace("callback", s->id, NULL);
	s->callback = callback;
	s->context = context;
	return S_OK;
}

EXPORT HRESULT WINAPI HcsGetComputeSystemProperties(System *s, Operation *op, PCWSTR query)
{
	static WCHAR document[256];
	swprintf(document, 256, L"{\"Id\":\"%ls\",\"RuntimeId\":\"%ls\",\"State\":\"Created\"}", s->id, s->id);
	trace("properties", s->id, query);
	return done(op, S_OK, document);
}

static HRESULT change(System *s, Operation *op, const char *call, PCWSTR options, int from, enum state to)
{
	trace(call, s->id, options);
	if (!(from & 1 << s->state))
		return done(op, s->state == OFF ? STOPPED : INVALID, L"{\"Error\":-1,\"ErrorMessage\":\"not in this state\"}");
	s->state = to;
	return done(op, S_OK, NULL);
}

EXPORT HRESULT WINAPI HcsStartComputeSystem(System *s, Operation *op, PCWSTR options)
{
	return change(s, op, "start", options, 1 << CREATED, RUNNING);
}

EXPORT HRESULT WINAPI HcsPauseComputeSystem(System *s, Operation *op, PCWSTR options)
{
	return change(s, op, "pause", options, 1 << RUNNING, PAUSED);
}

EXPORT HRESULT WINAPI HcsResumeComputeSystem(System *s, Operation *op, PCWSTR options)
{
	return change(s, op, "resume", options, 1 << PAUSED, RUNNING);
}

EXPORT HRESULT WINAPI HcsSaveComputeSystem(System *s, Operation *op, PCWSTR options)
{
	return change(s, op, "save", options, 1 << PAUSED, PAUSED);
}

EXPORT HRESULT WINAPI HcsModifyComputeSystem(System *s, Operation *op, PCWSTR change_, HANDLE identity)
{
	return change(s, op, "modify", change_, 1 << RUNNING, RUNNING);
}

EXPORT HRESULT WINAPI HcsShutDownComputeSystem(System *s, Operation *op, PCWSTR options)
{
	HRESULT r = change(s, op, "shutdown", options, 1 << RUNNING, RUNNING);
	if (op->result == S_OK)
		off(s, L"{\"Status\":0,\"ExitType\":\"GracefulExit\"}");
	return r;
}

EXPORT HRESULT WINAPI HcsTerminateComputeSystem(System *s, Operation *op, PCWSTR options)
{
	HRESULT r = change(s, op, "terminate", options, 1 << CREATED | 1 << RUNNING | 1 << PAUSED, OFF);
	if (op->result == S_OK)
		off(s, L"{\"Status\":0,\"ExitType\":\"ForcedExit\"}");
	return r;
}
