"""Errors of strict dataclasses."""


class StrictDataclassError(Exception):
    pass


class StrictDataclassDefinitionError(StrictDataclassError):
    pass


class StrictDataclassFieldValidationError(StrictDataclassError):
    def __init__(self, field, cause):
        super().__init__("field '%s': %s: %s" % (field, type(cause).__name__, cause))


class StrictDataclassClassValidationError(StrictDataclassError):
    def __init__(self, validator, cause):
        super().__init__("%s: %s: %s" % (validator, type(cause).__name__, cause))
