// The comparison behind intact.Watch (liteseg_kernels/intact.py): whether modules and dicts still hold what they held, by
// addresses. Every call of a network asks it.

#define Py_LIMITED_API 0x030A0000
#include <Python.h>

namespace {

// Python objects are compared by address and never looked into: who made the list keeps them alive.
struct Expected {
  PyObject* const* at;
  PyObject* const* end;

  bool left(size_t count) const {
    return static_cast<size_t>(end - at) >= count;
  }
};

bool unchanged_types(PyObject* objects, Expected& expected) {
  const Py_ssize_t count = PyTuple_Size(objects);
  if (!expected.left(static_cast<size_t>(count)))
    return false;
  for (Py_ssize_t i = 0; i < count; ++i) {
    if (reinterpret_cast<PyObject*>(Py_TYPE(PyTuple_GetItem(objects, i))) != *expected.at++)
      return false;
  }
  return true;
}

// Its size, a number of items, and their keys and values.
bool unchanged_dict(PyObject* dict, Expected& expected) {
  if (!expected.left(2) || reinterpret_cast<Py_ssize_t>(expected.at[0]) != PyDict_Size(dict))
    return false;
  const auto count = reinterpret_cast<size_t>(expected.at[1]);
  expected.at += 2;
  // no product, which might overflow
  if (!expected.left(count) || !expected.left(count + count))
    return false;
  for (size_t i = 0; i < count; ++i, expected.at += 2) {
    if (PyDict_GetItemWithError(dict, expected.at[0]) != expected.at[1])
      return false;
  }
  return true;
}

PyObject* unchanged(PyObject*, PyObject* arguments) {
  PyObject *own, *dicts, *objects, *bytes;
  if (PyArg_ParseTuple(arguments, "O!O!O!S", &PyDict_Type, &own, &PyTuple_Type, &dicts, &PyTuple_Type, &objects,
                       &bytes) == 0) {
    return nullptr;
  }
  // bytes are aligned as any object is, for what follows its header
  PyObject* const* first = reinterpret_cast<PyObject* const*>(PyBytes_AsString(bytes));
  Expected expected{first, first + PyBytes_Size(bytes) / static_cast<Py_ssize_t>(sizeof(PyObject*))};
  bool same = unchanged_types(objects, expected) && unchanged_dict(own, expected);
  for (Py_ssize_t i = 0; same && i < PyTuple_Size(dicts); ++i) {
    PyObject* dict = PyTuple_GetItem(dicts, i);
    if (PyDict_Check(dict) == 0) {
      PyErr_Format(PyExc_TypeError, "unchanged: dicts[%zd]: expected a dict", i);
      return nullptr;
    }
    same = unchanged_dict(dict, expected);
  }
  return PyBool_FromLong(same && expected.at == expected.end);
}

PyMethodDef methods[] = {
    {"unchanged", unchanged, METH_VARARGS,
     "unchanged(own, dicts, objects, expected): whether the types of `objects` and the items of `own` and `dicts`\n"
     "have the addresses in `expected`."},
    {nullptr, nullptr, 0, nullptr},
};

PyModuleDef module = {PyModuleDef_HEAD_INIT, "_watch", nullptr, 0, methods, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__watch() {
  return PyModule_Create(&module);
}
